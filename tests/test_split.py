"""`split`: f(x) = decode(encode(x), x) at every cut of every model, and the names of layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from helpers import promoting, relative
from jax.ad_checkpoint import checkpoint_name
from models import MODELS

import jaxplain as jx
from jaxplain._analysis.activity import CONSTANT
from jaxplain._layers import split as cut
from jaxplain._split import stage_function


def _cuts(staged, graph, loops=()):
    """Every varying value of a program, leaving everywhere and entering each equation, in each of its loops."""
    for equation in graph.equations:
        varying = lambda values: tuple(v for v in dict.fromkeys(values) if staged.activity[v] is not CONSTANT)
        lengths = [e.params["length"] for e in loops if e.primitive == "scan"]
        runs = [None, (0,) * len(lengths), tuple(n - 1 for n in lengths)] if lengths else [None]
        for values, readers in ((varying(equation.outputs), None), (varying(equation.inputs), frozenset([equation]))):
            for run in runs if values else ():
                yield cut.CutPoint("here", values, loops, run, readers)
        if equation.primitive != "cond":
            for body in equation.bodies:
                yield from _cuts(staged, body, (*loops, equation))


@pytest.mark.rows("model", MODELS, list(MODELS)[::2])
def test_every_cut_of_every_model_is_exact(model):
    case = MODELS[model]()
    x = jax.tree.map(lambda leaf: leaf[0], case.xs)
    staged = stage_function("test", lambda x, y: case.score(case.weights, x, y), (x, 1), argnums=0, allow_random=False)
    (want,) = cut.decode(staged.graph, [], [], staged.arrays)
    assert relative(want, case.score(case.weights, x, 1)) < 1e-12
    sites = list(_cuts(staged, staged.graph))
    assert len(sites) >= 10
    for site in sites[:: max(1, len(sites) // 20)]:
        h = cut.encode(staged.graph, [site], staged.arrays)
        assert [(v.shape, v.dtype) for v in h[0]] == [(s.shape, s.dtype) for s in site.shapes]
        (got,) = cut.decode(staged.graph, [site], h, staged.arrays)
        # Equation by equation, to the last bit; the body of a loop is compiled.
        assert relative(got, want) < 1e-14 if site.loops else got == want
    site = sites[len(sites) // 2]
    h = jax.jit(lambda arrays: cut.encode(staged.graph, [site], arrays))(staged.arrays)
    (got,) = jax.jit(lambda h, arrays: cut.decode(staged.graph, [site], h, arrays))(h, staged.arrays)
    assert relative(got, want) < (1e-2 if model == "bf16_compute" else 1e-6)


class _Block(linen.Module):
    @linen.compact
    @promoting()
    def __call__(self, x, _=None):
        return x + linen.Dense(4)(jax.nn.relu(linen.Dense(4)(x))), None


class _Net(linen.Module):
    @linen.compact
    @promoting()
    def __call__(self, x):
        x, _ = linen.scan(_Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)
        shared = _Block(name="shared")
        x, _ = shared(shared(x)[0])
        return linen.Dense(3, name="head")(checkpoint_name(x, "tag"))


@functools.cache
def _net():
    net, x = _Net(), jax.random.normal(jax.random.key(1), (4,))
    weights = jax.jit(net.init)(jax.random.key(0), x[None])
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

    @jax.jit  # one program for all
    def ends(x):
        h = encode(x, 1)
        return h, decode(h, x, 1), jx.gradient(decode)(h, x, 1), decode(h + 1, x, 1), score(x, 1)

    h, value, gradient, moved, want = ends(x)
    assert h.shape == shape
    assert relative(value, want) < 1e-6
    assert np.abs(gradient).max() > 0
    assert relative(moved, want) > 1e-6


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


class _Step(linen.Module):
    @linen.compact
    @promoting()
    def __call__(self, x, step):
        return jnp.tanh(linen.Dense(4)(x + step))


class _Universal(linen.Module):
    """One block, three times in a row, each with an embedding of its own; the first time on nothing but weights."""

    @linen.compact
    @promoting()
    def __call__(self, x):
        block, h = _Step(name="block"), jnp.zeros(4)
        for step in self.param("steps", linen.initializers.normal(1.0), (3, 4)):
            h = block(h, step * x)
        return linen.Dense(3, name="head")(h)


@pytest.mark.parametrize("argnums", [1, (0, 1)])  # with the weights closed over, and as an input
def test_each_call_of_a_layer_is_told_from_the_next(argnums):
    net, x = _Universal(), jax.random.normal(jax.random.key(1), (4,))
    weights = net.init(jax.random.key(0), x)
    _, state = net.apply(weights, x, capture_intermediates=True)
    calls = state["intermediates"]["block"]["__call__"]
    f = lambda weights, x: net.apply(weights, x)[1]
    for k, want in enumerate(calls):
        encode, decode = jx.split(f, f"block@{k}", argnums=argnums)
        assert relative(encode(weights, x), want) < 1e-12
        head = weights["params"]["head"]
        if k == 2:
            assert relative(jax.grad(decode)(want, weights, x), head["kernel"][:, 1]) < 1e-12
        with pytest.raises(jx.LayerError, match=r"block@0:in(.|\n)*block@2:in"):
            jx.split(f, "block:in", argnums=argnums)[0](weights, x)


def test_calls_survive_jit_vmap_and_a_gradient_inside():
    w = jax.random.normal(jax.random.key(0), (4, 4))

    @jax.jit
    def layer(x):
        with jax.named_scope("layer"):
            return jnp.tanh(x @ w)

    x = jax.random.normal(jax.random.key(1), (4,))
    chain = lambda x: jnp.sum(layer(layer(layer(x))))
    for f in (chain, lambda x: jax.vmap(chain)(x[None])[0]):
        for k, want in enumerate((layer(x), layer(layer(x)), layer(layer(layer(x))))):
            assert relative(jx.split(f, f"layer@{k}").encode(x).reshape(4), want) < 1e-12
    # A split of a split: names stay.
    encode, decode = jx.split(chain, "layer@0")
    again = jx.split(decode, "layer@-1").encode(encode(x), x)
    assert relative(again, layer(layer(layer(x)))) < 1e-12
    force = lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(layer(x)))(x) ** 2)
    with pytest.raises(jx.LayerError, match=r"layer@0(.|\n)*layer@1"):  # there and back
        jx.split(force, "layer")[0](x)


def test_nnx_equinox_and_bare_scopes_have_names():
    equinox = pytest.importorskip("equinox")
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    net, x = Net(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (4,), jnp.float32)
    score = lambda x: jx.nnx.named(net)(x)[1]
    encode, decode = jx.split(score, "first")
    assert relative(encode(x), net.first(x)) < 1e-6 and relative(decode(encode(x), x), score(x)) < 1e-6
    assert relative(jax.grad(decode)(encode(x), x), np.where(net.first(x) > 0, net.second.kernel[:, 1], 0)) < 1e-6

    mlp = equinox.nn.MLP(4, 3, 5, 2, key=jax.random.key(0), dtype=jnp.float32)
    for k, want in enumerate((mlp.layers[0](x), mlp.layers[1](jax.nn.relu(mlp.layers[0](x))), mlp(x))):
        assert relative(jx.split(lambda x: mlp(x)[1], f"eqx.nn.Linear@{k}").encode(x), want) < 1e-6

    def odd(x):
        with jax.named_scope("layers[0]"):
            x = jnp.sin(x)
        return jnp.sum(checkpoint_name(x * 2, "post@2:in"))

    assert relative(jx.split(odd, "layers[0]").encode(x), jnp.sin(x)) < 1e-12
    assert relative(jx.split(odd, "post@2:in").encode(x), 2 * jnp.sin(x)) < 1e-12


def test_the_same_value_twice_is_refused():
    score, x = _net()
    for at in (["head:in", "head:in"], ["Scan_Block_0", "Scan_Block_0@1"], {"a": "shared@0", "b": "shared@0"}):
        with pytest.raises(jx.LayerError, match="are the same value"):
            jx.split(score, at).encode(x, 1)


def test_what_cannot_be_cut_says_why():
    @jax.custom_vjp
    def own(x):
        with jax.named_scope("own"):
            return jnp.sin(x)

    own.defvjp(lambda x: (own(x), x), lambda x, g: (g * jnp.cos(x),))

    def score(x, z):
        with jax.named_scope("other"):
            z = jnp.sin(z)
        return jnp.sum(own(x) + z + jnp.argsort(x)[0].astype(x.dtype))

    x = jnp.arange(4.0)
    for at, words in (("own", "inside custom_vjp_call"), ("other", "does not depend on the explained input")):
        with pytest.raises(jx.LayerError, match=words):
            jx.split(score, at).encode(x, x)
    with pytest.raises(jx.LayerError, match="narrow it"):
        jx.split(score, lambda node: True).encode(x, x)
    with pytest.raises(jx.InputError, match="`argnums` must be an integer"):
        jx.split(score, "own", argnums="x").encode(x, x)
    encode, decode = jx.split(score, "other", argnums=1)
    for h in ((encode(x, x),), [encode(x, x)], None):
        with pytest.raises(jx.StructureError, match="not what `encode` returns"):
            decode(h, x, x)
    for at in (None, []):
        for make in (jx.split(score, at).encode, jx.conductance(score, at=at)):
            with pytest.raises(jx.SettingError, match="names no layer"):
                make(x, x)
    with pytest.raises(jx.SettingError, match="takes one baseline"):
        jx.conductance(score, at="other", baseline=jx.references(x[None]))


def test_conductance_by_hand_with_a_bypass():
    w = jax.random.normal(jax.random.key(0), (4, 4))
    score = lambda x: jnp.sum(checkpoint_name(jnp.tanh(x @ w), "h") * jnp.cos(x) + jnp.sin(x))
    x, b = jax.random.normal(jax.random.key(1), (2, 4))
    nodes, weights = np.polynomial.legendre.leggauss(60)
    alphas, weights = (nodes + 1) / 2, weights / 2

    def integrand(alpha):
        p = b + alpha * (x - b)
        change = (1 - jnp.tanh(p @ w) ** 2) * ((x - b) @ w)
        return jnp.cos(p) * change

    want = sum(weight * integrand(alpha) for alpha, weight in zip(alphas, weights, strict=True))
    got, info = jx.with_info(jx.conductance(score, at="h", baseline=b, n_steps=60))(x)
    assert relative(got, want) < 1e-9
    assert relative(info.gap, jnp.sum(want) - (score(x) - score(b))) < 1e-6  # what bypasses the layer
    both = jx.with_info(jx.conductance(score, at=["h", "h"], n_steps=5))(x)[1]
    assert both.n_gradients == 10 and both.n_evaluations == 2 and both.gap is None


def test_a_cut_inside_a_reversed_scan_is_that_of_the_unrolled_loop():
    w, xs = jax.random.normal(jax.random.key(0), (4, 4)), jax.random.normal(jax.random.key(1), (5, 4))

    def cell(h, x):
        h = checkpoint_name(jnp.tanh(h @ w + x), "h")
        return h, h

    encode, decode = jx.split(lambda xs: jnp.sum(jnp.cos(jax.lax.scan(cell, xs[0], xs, reverse=True)[1])), "h@1")
    h, made = xs[0], []
    for number, x in enumerate(xs[::-1]):
        h = cell(h, x)[0]
        if number == 1:
            assert relative(encode(xs), h) < 1e-14
            h = 2 * h
        made.append(h)
    assert relative(decode(2 * encode(xs), xs), jnp.sum(jnp.cos(jnp.stack(made)))) < 1e-12
