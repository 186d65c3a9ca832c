"""`split`: f(x) = decode(encode(x), x) at every cut of every model, and the names of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from helpers import relative
from jax.ad_checkpoint import checkpoint_name
from models import MODELS
from test_matrix import _case

import jaxplain as jx
from jaxplain.graph import cut
from jaxplain.graph.activity import CONSTANT
from jaxplain.methods.inside import staged


def _cuts(inside, graph, loops=()):
    """Every varying value of a program, leaving everywhere and entering each equation, in each of its loops."""
    for equation in graph.equations:
        varying = lambda values: tuple(v for v in dict.fromkeys(values) if inside.activity[v] is not CONSTANT)
        lengths = [e.params["length"] for e in loops if e.primitive == "scan"]
        runs = [None, (0,) * len(lengths), tuple(n - 1 for n in lengths)] if lengths else [None]
        for values, readers in ((varying(equation.outputs), None), (varying(equation.inputs), frozenset([equation]))):
            for run in runs if values else ():
                yield cut.Site("here", values, loops, run, readers)
        if equation.primitive != "cond":
            for body in equation.bodies:
                yield from _cuts(inside, body, (*loops, equation))


@pytest.mark.parametrize("model", MODELS)
def test_every_cut_of_every_model_is_exact(model):
    case = _case(model)
    x = jax.tree.map(lambda leaf: leaf[0], case.xs)
    inside = staged("test", lambda x, y: case.score(case.weights, x, y), (x, 1), 0, False)
    (want,) = cut.decode(inside.graph, [], [], inside.arrays)
    assert relative(want, case.score(case.weights, x, 1)) < 1e-12
    sites = list(_cuts(inside, inside.graph))
    assert len(sites) >= 10
    for site in sites[:: max(1, len(sites) // 25)]:
        h = cut.encode(inside.graph, [site], inside.arrays)
        assert [(v.shape, v.dtype) for v in h[0]] == [(s.shape, s.dtype) for s in site.shapes]
        (got,) = cut.decode(inside.graph, [site], h, inside.arrays)
        # Equation by equation, to the last bit; the body of a loop is compiled.
        assert relative(got, want) < 1e-14 if site.loops else got == want


class _Block(linen.Module):
    @linen.compact
    def __call__(self, x, _=None):
        return x + linen.Dense(4)(jax.nn.relu(linen.Dense(4)(x))), None


class _Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x, _ = linen.scan(_Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)
        shared = _Block(name="shared")
        x, _ = shared(shared(x)[0])
        return linen.Dense(3, name="head")(checkpoint_name(x, "tag"))


def _net():
    net, x = _Net(), jax.random.normal(jax.random.key(1), (4,))
    weights = net.init(jax.random.key(0), x[None])
    return jx.logit(lambda xs: net.apply(weights, xs)), x


@pytest.mark.parametrize(
    ("at", "shape"),
    [
        ("Scan_Block_0", (3, 1, 4)),
        ("Scan_Block_0@-1", (1, 4)),
        ("Scan_Block_0/Dense_0:in", (3, 1, 4)),
        ("shared@1", (1, 4)),
        ("head:in", (1, 4)),
        ("tag", (1, 4)),
        ("last activation", (1, 4)),
        ("first dense:in", (1, 4)),
        (lambda node: node.path.endswith("head"), (1, 3)),
    ],
)
def test_names(at, shape):
    score, x = _net()
    encode, decode = jx.split(score, at)
    h = encode(x, 1)
    assert h.shape == shape
    assert relative(jax.jit(decode)(jax.jit(encode)(x, 1), x, 1), score(x, 1)) < 1e-6
    assert np.abs(jx.gradient(decode)(h, x, 1)).max() > 0
    assert relative(decode(h + 1, x, 1), score(x, 1)) > 1e-6


def test_several_layers_and_refusals():
    score, x = _net()
    encode, decode = jx.split(score, {"a": "shared@0", "b": ["head:in"]})
    h = encode(x, 1)
    assert h["a"].shape == h["b"][0].shape == (1, 4) and relative(decode(h, x, 1), score(x, 1)) < 1e-6
    with pytest.raises(jx.StructureError, match="not what `encode` returns"):
        decode(h["a"], x, 1)
    with pytest.raises(jx.StructureError, match=r"float32|float64"):
        decode({"a": h["a"][0], "b": h["b"]}, x, 1)
    for at, words in (
        ("shared", "several layers answer(.|\n)*shared@0(.|\n)*shared@1"),
        ("nothing", "no layer answers(.|\n)*_Net/shared"),
        ("Dense_*", "several"),
        ("shared@2", "runs 2 times"),
    ):
        with pytest.raises(jx.LayerError, match=words):
            jx.split(score, at)[0](x, 1)


def test_layer_integrated_gradients_are_complete_with_respect_to_decode():
    score, x = _net()
    encode, decode = jx.split(score, "shared@1:in")
    h = encode(x, 1)
    attribution, info = jx.with_info(jx.integrated_gradients(decode, n_steps=200))(h, x, 1)
    assert abs(jnp.sum(attribution) - (decode(h, x, 1) - decode(0 * h, x, 1))) < 5e-3 and abs(info.gap) < 5e-3


def test_conductance_is_complete_and_integrated_gradients_at_the_input():
    w, v = jax.random.normal(jax.random.key(0), (6, 8)), jax.random.normal(jax.random.key(1), (8,))
    score = lambda x: jnp.tanh(x @ w) @ v
    x = jax.random.normal(jax.random.key(2), (6,))
    attribution, info = jx.with_info(jx.conductance(score, at="last activation"))(x)
    assert attribution.shape == (8,) and abs(info.gap) < 1e-9 and relative(jnp.sum(attribution), score(x)) < 1e-9
    # A hidden unit reads the input alone: its conductance is the integrated gradients of that unit, times its weight.
    each = [jx.integrated_gradients(lambda x, j=j: jnp.tanh(x @ w)[j] * v[j])(x).sum() for j in range(8)]
    assert relative(attribution, jnp.stack(each)) < 1e-9


def test_integer_inputs():
    table, w = jax.random.normal(jax.random.key(0), (9, 4)), jax.random.normal(jax.random.key(1), (4, 4))
    score = lambda ids: jnp.sum(jax.nn.relu(checkpoint_name(table[ids], "embedding") @ w))
    ids = jnp.array([1, 5, 2])
    encode, decode = jx.split(score, "embedding")
    assert encode(ids).shape == (3, 4) and relative(decode(encode(ids), ids), score(ids)) < 1e-12
    assert jx.grad_cam(score, relu=False)(ids).shape == (3,)


def test_conductance_of_several_layers_is_that_of_each():
    score, x = _net()
    both = jx.conductance(score, at=["shared@0", "head:in"], n_steps=20)(x, 1)
    for got, at in zip(both, ("shared@0", "head:in"), strict=True):
        alone, info = jx.with_info(jx.conductance(score, at=at, n_steps=20))(x, 1)
        assert relative(got, alone) < 1e-6 and np.abs(alone).max() > 0 and info.gap is not None
    with pytest.raises(jx.LayerError, match="all iterations of a scan"):
        jx.conductance(score, at="Scan_Block_0")(x, 1)
    with pytest.raises(jx.SettingError, match="position has no number"):
        jx.split(score, "last dense@1")[0](x, 1)
