"""What the engine recognizes, what it must not, and that spelling does not matter."""

import functools
import itertools
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from helpers import promoting, relative
from jax import lax
from models import MODELS

import jaxplain as jx
from jaxplain._analysis.analyze import analyze
from jaxplain._engine.replay import replay
from jaxplain._ir.graph import flatten
from jaxplain._ir.interpret import run_equation
from jaxplain._ir.primitives import KNOWN, ROWS, Trait

W = jnp.sin(jnp.arange(24.0)).reshape(4, 6)
X = jnp.cos(jnp.arange(12.0)).reshape(3, 4)


def kinds(f, *args):
    return [node.kind for node in analyze(jax.make_jaxpr(f)(*args)).all_nodes() if node.kind != "structural"]


ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "relu6_min_max": lambda x: jnp.minimum(jnp.maximum(x, 0), 6),
    "leaky_relu": jax.nn.leaky_relu,
    "leaky_where": lambda x: jnp.where(x > 0, x, 0.2 * x),
    "parametric": lambda x: jnp.where(x > 0, x, W[0, 0] * x),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "squareplus": jax.nn.squareplus,
    "hard_tanh": jax.nn.hard_tanh,
    "abs": jnp.abs,
    "mask": lambda x: x * (x > 0).astype(x.dtype),
    "max_1": lambda x: jnp.maximum(x, 1),
    "own": lambda x: x * jnp.tanh(x**2) + 1 / (1 + jnp.exp(-x)),
    "skip": lambda x: x + jax.nn.relu(x),
    "jitted": jax.jit(jax.nn.gelu),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_elementwise_formula_is_one_activation(name):
    assert kinds(lambda x: jnp.sum(ACTIVATIONS[name](x @ W)), X) == ["dense", "activation", "sum"]


def _linen(module):
    variables = promoting()(module.init)(jax.random.key(0), X @ W)
    return promoting()(lambda x: module.apply(variables, x))


def _group(x):
    g = x.reshape(3, 2, 3)
    g = (g - g.mean(2, keepdims=True)) / jnp.sqrt(g.var(2, keepdims=True) + 1e-5)
    return g.reshape(3, 6)


NORMS = {
    "layer": lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * W[:1] + W[1:2],
    "scaled first": lambda x: W[:1] * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "rms": lambda x: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6),
    "l2": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "instance": lambda x: (x - x.mean(0)[None]) / jnp.sqrt(x.var(0)[None] + 1e-5),
    "group": _group,
    "standardize": jax.nn.standardize,
    "of the whole array, beside an axis of one": lambda x: (
        x[None] / jnp.broadcast_to(jnp.sqrt(jnp.mean(x**2) + 1e-6), (1, *x.shape))
    ),
    "linen_layer": _linen(linen.LayerNorm()),
    "linen_rms": _linen(linen.RMSNorm()),
    "linen_group": _linen(linen.GroupNorm(num_groups=2)),
    "nnx_layer": promoting()(nnx.LayerNorm(6, rngs=nnx.Rngs(0))),
    "nnx_rms": promoting()(nnx.RMSNorm(6, rngs=nnx.Rngs(0))),
    "equinox_layer": promoting()(jax.vmap(eqx.nn.LayerNorm(6))),
    "equinox_rms": promoting()(jax.vmap(eqx.nn.RMSNorm(6))),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_normalization_is_one_node(name):
    found = kinds(lambda x: jnp.sum(NORMS[name](x @ W) ** 3), X)
    assert found == ["dense", "normalization", "activation", "sum"]


def _by_hand(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _by_reciprocal(x):
    e = jnp.exp(x)
    return e * (1 / jnp.sum(e, -1, keepdims=True))


SEGMENTS = jnp.array([0, 1, 0])


def _of_segments(x):
    e = jnp.exp(x - jax.ops.segment_max(x, SEGMENTS, 2)[SEGMENTS])
    return e / jax.ops.segment_sum(e, SEGMENTS, 2)[SEGMENTS]


SOFTMAXES = {
    "softmax": ("softmax", jax.nn.softmax),
    "axis_0": ("softmax", lambda x: jax.nn.softmax(x, axis=0)),
    "masked": ("softmax", lambda x: jax.nn.softmax(jnp.where(W[:3] > 0, x, -jnp.inf))),
    "where": ("softmax", lambda x: jax.nn.softmax(x, where=W[:3] > 0)),
    "temperature": ("softmax", lambda x: jax.nn.softmax(x / 3)),
    "by_hand": ("softmax", _by_hand),
    "reciprocal": ("softmax", _by_reciprocal),
    "segments": ("softmax", _of_segments),
    "log_softmax": ("log_softmax", jax.nn.log_softmax),
    "logsumexp": ("logsumexp", lambda x: jax.nn.logsumexp(x, -1)),
    "logsumexp_scipy": ("logsumexp", lambda x: jax.scipy.special.logsumexp(x, 0)),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_is_one_node(name):
    kind, f = SOFTMAXES[name]
    found = kinds(lambda x: jnp.sum(f(x @ W) ** 2), X)
    assert found.count(kind) == 1 and set(found) <= {"dense", kind, "scale_shift", "activation", "sum"}


NEAR_MISSES = {
    "x over its image": lambda x: jnp.sum(x * (jnp.abs(x @ W[:, :4]) + 1) ** -1),
    "rbf kernel": lambda x: jnp.sum(jnp.exp(-((x - 1) ** 2)), 1)[0],
    "another's sum": lambda x: jnp.sum(jnp.exp(x) / jnp.sum(jnp.exp(x @ W), -1, keepdims=True)),
    "another's size": lambda x: jnp.sum(x / jnp.sqrt(jnp.mean((x @ W + 1) ** 2, -1, keepdims=True))),
    "a bias in the statistic": lambda x: jnp.sum(x / (jnp.sum(x, -1, keepdims=True) + X[:, :1])),
    "a number that is no ε": lambda x: jnp.sum(x / (1 + jnp.sum(jnp.abs(x), -1, keepdims=True))),
    "a ratio of two numbers": lambda x: jnp.sum(x * X) / jnp.sum(x * (X + 1)),
    "sums of other rows": lambda x: jnp.sum(jnp.exp(x[:, :3]) / (jnp.exp(x[:, :3]).sum(-1)[None] + 1)),
    "stored statistics": lambda x: jnp.sum((x @ W - W[:1]) / jnp.sqrt(W[1:2] ** 2 + 1e-5)),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_neither_softmax_nor_normalization(name):
    assert not {"softmax", "log_softmax", "logsumexp", "normalization"} & set(kinds(NEAR_MISSES[name], X))


def test_a_softmax_whose_sum_escapes_is_a_normalization():
    def score(x):
        e = jnp.exp(x)
        s = e.sum(-1, keepdims=True)
        return jnp.sum((e / s) ** 2) + jnp.sum(s * s)

    found = kinds(score, X)
    assert "normalization" in found and not {"softmax", "logsumexp"} & set(found)


def test_a_gate_and_a_product_are_no_activations():
    assert kinds(lambda x: jnp.sum((x @ W) * jax.nn.sigmoid(x @ (W + 1))), X)[-2:] == ["gate", "sum"]
    assert kinds(lambda x: jnp.sum((x @ W) * (x @ (W + 1))), X)[-2:] == ["product", "sum"]


K = jnp.sin(jnp.arange(54.0)).reshape(3, 3, 2, 3)
IMAGE = jnp.cos(jnp.arange(98.0)).reshape(1, 7, 7, 2)
A = W[:3, None, None, None, :3]  # one number for each channel


def _conv(x, k=K, dims=("NHWC", "HWIO", "NHWC"), **settings):
    return lax.conv_general_dilated(x, k, (1,) * (x.ndim - 2), "SAME", dimension_numbers=dims, **settings)


LAYERS = {
    "matmul": ("dense", lambda x: x[0, 0] @ W[:2]),
    "bias": ("dense", lambda x: x.reshape(-1)[:4] @ W + W[0]),
    "einsum": ("dense", lambda x: jnp.einsum("bhwc,cd->bhwd", x, W[:2])),
    "transposed": ("dense", lambda x: W[:, :2] @ x.reshape(2, -1) + 1),
    "cast": ("dense", lambda x: (x.astype(jnp.float32) @ W[:2].astype(jnp.float32)).astype(jnp.float64) + 1),
    "weighted sum": ("dense", lambda x: jnp.sum(x * IMAGE, axis=1) + 1),
    "conv": ("convolution", lambda x: _conv(x) + A[0]),
    "batch_norm after": ("convolution", lambda x: (_conv(x) - A[0]) / jnp.sqrt(2.0) * A[1] + A[2]),
    "scale before": ("convolution", lambda x: _conv((x - 0.5) / 2)),
    "depthwise": ("convolution", lambda x: _conv(x, K[:, :, :1, :2], feature_group_count=2) + 1),
    "dilated": ("convolution", lambda x: _conv(x, rhs_dilation=(2, 2))),
    "upsampling": (
        "convolution",
        lambda x: lax.conv_transpose(x, K, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    ),
    "nchw": (
        "convolution",
        lambda x: _conv(x.transpose(0, 3, 1, 2), K.transpose(3, 2, 0, 1), ("NCHW", "OIHW", "NCHW")),
    ),
    "1d": ("convolution", lambda x: _conv(x[0], K[0], ("NWC", "WIO", "NWC"))),
    "3d": ("convolution", lambda x: _conv(x[..., None, :], K[None], ("NHWDC", "DHWIO", "NHWDC"))),
    "mean": ("sum", lambda x: jnp.mean(x, (1, 2))),
    "average pool": ("sum", promoting()(lambda x: linen.avg_pool(x, (2, 2)))),
    "cumsum": ("sum", lambda x: jnp.cumsum(x, 1)),
    "fft": ("fft", lambda x: jnp.fft.rfft(x, axis=1).real),
    "segments": ("sum", lambda x: jax.ops.segment_sum(x[0], jnp.arange(7) // 2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_node_with_its_scale_and_bias(name):
    kind, f = LAYERS[name]
    found = kinds(lambda x: jnp.max(jnp.tanh(f(x))), IMAGE)
    assert found == [kind, "activation", "max"]


# Spelling


P = {
    "w1": 0.5 * jnp.sin(jnp.arange(36.0)).reshape(6, 6),
    "b1": 0.1 * jnp.cos(jnp.arange(6.0)),
    "w2": 0.5 * jnp.cos(jnp.arange(36.0)).reshape(6, 6),
    "b2": 0.1 * jnp.sin(jnp.arange(6.0)),
    "v": jnp.sin(1 + jnp.arange(6.0)),
}


def _plain(x):
    return jax.nn.relu(jax.nn.relu(x @ P["w1"] + P["b1"]) @ P["w2"] + P["b2"]) @ P["v"]


def _scanned(x):
    step = lambda h, wb: (jax.nn.relu(h @ wb[0] + wb[1]), None)
    layers = jnp.stack([P["w1"], P["w2"]]), jnp.stack([P["b1"], P["b2"]])
    return lax.scan(step, x, layers)[0] @ P["v"]


def _einsum(x):
    h = jax.nn.relu(jnp.einsum("ij,i->j", P["w1"], x) + P["b1"])
    return jnp.einsum("i,i->", jnp.maximum(jnp.einsum("ji,j->i", P["w2"], h) + P["b2"], 0), P["v"])


def _as_convolutions(x):
    x = x.reshape(1, 6, 1, 1)
    for w, b in (("w1", "b1"), ("w2", "b2")):
        k = P[w].T.reshape(6, 6, 1, 1)
        x = jax.nn.relu(lax.conv(x, k, (1, 1), "VALID") + P[b].reshape(1, 6, 1, 1))
    return x.ravel() @ P["v"]


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        for _ in range(2):
            x = linen.relu(linen.Dense(6, param_dtype=jnp.float64)(x))
        return linen.Dense(1, use_bias=False, param_dtype=jnp.float64)(x)[0]


@promoting()
def _linen_net(x):
    parameters = {
        "Dense_0": {"kernel": P["w1"], "bias": P["b1"]},
        "Dense_1": {"kernel": P["w2"], "bias": P["b2"]},
        "Dense_2": {"kernel": P["v"][:, None]},
    }
    return _Linen().apply({"params": parameters}, x)


@promoting()
def _nnx_net(x):
    layers = [nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(2)]
    for layer, (w, b) in zip(layers, (("w1", "b1"), ("w2", "b2")), strict=True):
        layer.kernel, layer.bias = nnx.Param(P[w]), nnx.Param(P[b])
        x = nnx.relu(layer(x))
    return x @ P["v"]


def _equinox_net(x):
    for w, b in (("w1", "b1"), ("w2", "b2")):
        linear = eqx.nn.Linear(6, 6, key=jax.random.key(0), dtype=jnp.float64)
        linear = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (P[w].T, P[b]))
        x = jax.nn.relu(linear(x))
    return x @ P["v"]


@jax.custom_jvp
def _with_own_derivative(x):
    return x @ P["w1"] + P["b1"]


_with_own_derivative.defjvp(lambda x, t: (_with_own_derivative(*x), t[0] @ P["w1"]))

SPELLINGS = {
    "jit": jax.jit(_plain),
    "nested jit": lambda x: (
        jax.jit(lambda h: jax.jit(jax.nn.relu)(h @ P["w2"] + P["b2"]))(jax.jit(jax.nn.relu)(x @ P["w1"] + P["b1"]))
        @ P["v"]
    ),
    "einsum": _einsum,
    "vmap": lambda x: jax.vmap(_plain)(x[None])[0],
    "scan": _scanned,
    "remat": lambda x: jax.checkpoint(_plain)(x),
    "1x1 convolutions, NCHW": _as_convolutions,
    "linen": _linen_net,
    "nnx": _nnx_net,
    "equinox": _equinox_net,
    "custom_jvp": lambda x: jax.nn.relu(jax.nn.relu(_with_own_derivative(x)) @ P["w2"] + P["b2"]) @ P["v"],
    "clip": lambda x: jnp.clip(jnp.clip(x @ P["w1"] + P["b1"], 0) @ P["w2"] + P["b2"], 0) @ P["v"],
    "cond": lambda x: lax.cond(jnp.sum(x) > -100, _plain, lambda x: 0 * jnp.sum(x), x),
}
# One rule for every layer: a dense layer and a 1×1 convolution are the same then.
EXPLAINERS = {
    "zplus": lambda f: jx.lrp(f, rules=jx.rules.zplus()),
    "gamma": lambda f: jx.lrp(f, rules=jx.rules.gamma(0.3)),
    "alpha_beta": lambda f: jx.lrp(f, rules=jx.rules.alpha_beta(2, 1)),
    "deep_taylor": lambda f: jx.deep_taylor(f, low=-2.0, high=2.0),
    "guided": jx.guided_backprop,
    "deconvnet": jx.deconvnet,
}


AT = jnp.sin(2 + jnp.arange(6.0))


@functools.cache
def _as_plain(method):
    return EXPLAINERS[method](_plain)(AT)


SPELLED = list(itertools.product(SPELLINGS, EXPLAINERS))
# Every spelling meets two methods, and every method a third of the spellings.
SOME = [row for i, row in enumerate(SPELLED) if (i + i // len(EXPLAINERS)) % 3 == 0]


@pytest.mark.rows(("spelling", "method"), SPELLED, SOME)
def test_spelling_does_not_matter(spelling, method):
    if (spelling, method) == ("scan", "deep_taylor"):
        pytest.skip("one body stands for all iterations: none of its layers is first")
    want = _as_plain(method)
    assert float(jnp.abs(want).max()) > 1e-3
    assert relative(jax.jit(EXPLAINERS[method](SPELLINGS[spelling]))(AT), want) < 1e-10


@pytest.mark.parametrize("model", MODELS)
def test_the_value_is_that_of_the_equations_to_the_last_bit(model):
    case = MODELS[model]()
    x, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf[0], case.xs))
    closed = jax.make_jaxpr(lambda *leaves: case.score(case.weights, jax.tree.unflatten(structure, leaves), 1))(*x)
    graph = flatten(closed)
    values = dict(graph.constants) | dict(zip(graph.inputs, x, strict=True))
    for equation in graph.equations:
        values.update(zip(equation.outputs, run_equation(equation, [values[v] for v in equation.inputs]), strict=True))
    (value,) = replay(analyze(closed, depth=0), lambda node: None)(*x)
    np.testing.assert_array_equal(value, values[graph.outputs[0]])
    # A first iteration that is written out is compiled apart from its loop: equal to rounding.
    (value,) = replay(analyze(closed), lambda node: None)(*x)
    np.testing.assert_allclose(value, values[graph.outputs[0]], rtol=2e-2 if model == "bf16_compute" else 1e-13)


# Structure


MOVERS = {
    "gather": lambda h: h[jnp.array([2, 0, 0])],
    "top_k": lambda h: lax.top_k(h, 3)[0],
    "sort": jnp.sort,
    "concatenate": lambda h: jnp.concatenate([h, 2 * h]),
    "pad": lambda h: jnp.pad(h, 2),
    "dynamic_slice": lambda h: lax.dynamic_slice(h, (jnp.argmax(h) % 2,), (4,)),
    "segment_sum": lambda h: jax.ops.segment_sum(h, jnp.array([0, 1, 0, 2, 1, 1]), 3),
    "segment_max": lambda h: jax.ops.segment_max(h, jnp.array([0, 1, 0, 2, 1, 1]), 3),
    "cumsum": jnp.cumsum,
    "flip": jnp.flip,
    "fft": lambda h: jnp.fft.irfft(jnp.fft.rfft(h)),
    "fori": lambda h: lax.fori_loop(0, 3, lambda i, h: jnp.maximum(h @ P["w1"], 0), h),
    "switch": lambda h: lax.switch(jnp.argmax(h) % 2, [lambda h: h @ P["w1"], lambda h: jnp.abs(h)], h),
    "maxout": lambda h: jnp.maximum(h @ P["w1"], h @ P["w2"]),
    "scatter": lambda h: jnp.zeros(8).at[jnp.arange(6)].set(h),
    "scatter_add": lambda h: jnp.zeros(8).at[jnp.array([0, 0, 1, 2, 3, 3])].add(h),
}


@pytest.mark.parametrize("name", MOVERS)
def test_relevance_is_conserved_through_structure(name):
    score = lambda x: jnp.sum(
        jnp.arange(1.0, 20)[: MOVERS[name](x).size] * MOVERS[name](jax.nn.leaky_relu(x @ P["w2"]))
    )
    x = jnp.sin(2 + jnp.arange(6.0))
    explain = jx.with_info(jx.lrp(score, rules=jx.rules.epsilon(1e-12)))
    (relevance, info), gradient = jax.jit(lambda x: (explain(x), jax.grad(score)(x)))(x)
    assert abs(float(info.value)) > 1e-3 and abs(float(info.gap)) < 1e-9
    assert relative(relevance, x * gradient) < 1e-9


PRODUCTS = {
    "inner product with itself": lambda h: jnp.dot(h, h),
    "gram matrix": lambda h: jnp.sum(jnp.outer(h, h) @ P["w1"]),
    "elementwise": lambda h: jnp.sum((h @ P["w1"]) * (h @ P["w2"])),
    "scaled by a scalar": lambda h: jnp.sum(h @ P["w1"] * jnp.sum(h)),
    "quotient": lambda h: jnp.sum(h @ P["w1"] / (h @ P["w2"])),
    "doubled": lambda h: jnp.sum(h + h),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_share_and_conserve(name):
    score = lambda x: PRODUCTS[name](jax.nn.leaky_relu(x @ P["w2"]))
    _, info = jx.with_info(jx.lrp(score, rules=jx.rules.epsilon(1e-12)))(jnp.sin(2 + jnp.arange(6.0)))
    assert abs(float(info.value)) > 1e-3 and abs(float(info.gap)) < 1e-9


def test_first_and_last_are_found_through_branches_loops_and_on_both_ways():
    def score(x):
        a, b = x @ P["w1"], jax.checkpoint(lambda x: jnp.tanh(x @ P["w2"]))(x)
        h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), a + b, jnp.stack([P["w1"], P["w2"]]))[0]
        return h @ P["v"]

    rows = [row for row in jx.layers(score)(jnp.ones(6)) if row.kind == "dense"]
    assert [row.position for row in rows] == ["first", "first", "", "last"]


def test_preprocessing_belongs_to_the_first_layer_and_its_box_is_in_units_of_x():
    mean, std, x = 0.3, 0.7, jnp.linspace(0, 1, 6)
    inside = jx.deep_taylor(lambda x: _plain((x - mean) / std), low=0.0, high=1.0)(x)
    outside = jx.deep_taylor(_plain, low=(0 - mean) / std, high=(1 - mean) / std)((x - mean) / std)
    assert relative(inside, outside) < 1e-10


# Refusals


def test_all_unknown_nodes_are_listed_at_once_with_the_ways_on():
    score = lambda x: jnp.sum(jnp.linalg.cholesky(x @ x.T + jnp.eye(3))) + jnp.sum(jnp.linalg.inv(x[:, :3]))
    with pytest.raises(jx.UnknownNodeError) as caught:
        jx.lrp(score, rules=jx.composites.epsilon_plus())(X + 2 * jnp.eye(3, 4))
    message = str(caught.value)
    assert "cholesky" in message and len(re.findall(r"test_engine\.py:\d+", message)) >= 2
    assert "on_missing" in message and "composites.compose" in message
    explain = jx.lrp(score, rules=jx.composites.epsilon_plus(), on_missing="gradient")
    assert np.isfinite(explain(X + 2 * jnp.eye(3, 4))).all()


def test_a_while_loop_on_the_path_is_refused():
    score = lambda x: jnp.sum(lax.while_loop(lambda h: jnp.sum(h) < 10, lambda h: 2 * h + 1, x))
    with pytest.raises(jx.JaxplainError, match=r"lax\.scan"):
        jx.lrp(score, rules=jx.rules.epsilon())(X)


# JAX's primitives that no rule is known for, or that a staged score cannot hold.
REFUSED = set(
    """
global_array_to_host_local_array host_local_array_to_global_array accum_grad_in_ref addupdate after_all all_gather
all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start all_gather_start all_to_all
all_to_all_done all_to_all_start announce_jaxpr approx_top_k argmax argmin axis_index bitcast_convert_type box_get
box_set broadcast_to call_exported call_hi_primitive check cholesky cholesky_update complex composite conj core_map
create_linear create_token cudnn_fusion cumlogsumexp cumprod custom_lin custom_linear_solve custom_partitioning
custom_vmap_call dce_sink debug_callback debug_print dim_as_value dimension_size dot_product_attention_bwd
dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper
dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd
dot_product_attention_fwd_wrapper eig eigh empty empty2 empty_ref eval_jaxpr ffi_call free_ref freeze from_edtype
geqp3 geqrf get get_variable hessenberg householder_product inspect_sharding io_callback iota iota_2x32_shape
linear_call log_extend log_read lu lu_pivots_to_permutation maybe_set mulhi new_box new_log new_ref new_variable
noinline nonbatchable nondifferentiable_backward nontraceable ormqr pbroadcast pbroadcast_done pbroadcast_dynamic
pbroadcast_start philox2x32 philox4x32 pin platform_index ppermute ppermute_done ppermute_start precv preduced
psend psum_done psum_invariant_start psum_start pure_callback qr ragged_all_to_all random_bits random_clone
random_fold_in random_gamma random_seed random_split random_unwrap random_wrap reduce reduce_and reduce_or
reduce_prod reduce_scatter reduce_scatter_done reduce_scatter_start reduce_window reduce_xor reduced_vary_cast
reduced_vary_cast_p relayout remat_opt rng_bit_generator rng_uniform run_state scaled_dot scaled_matmul
scaled_matmul_wrapper scatter-mul schur select_and_scatter select_and_scatter_add select_if_vmap set_variable
shape_assertion shard_map stage svd swap symmetric_product threefry2x32 threefry4x32 tie to_edtype triangular_solve
tridiagonal tridiagonal_solve unpin unreachable unreduced_pmax unreduced_pmin unreduced_psum unreduced_psum_start
unreduced_reduce_scatter unreduced_reduce_scatter_start unvmap_all unvmap_any unvmap_max vary_unreduced_cast
vary_unreduced_cast_p vprim while with_memory_space_constraint""".split()  # noqa: SIM905
)


def _primitives():
    import jax.extend as jex
    from jax._src.interpreters import mlir

    found = {}
    for module in (lax, jax.extend.core.primitives):
        for name in dir(module):
            thing = getattr(module, name)
            if isinstance(thing, jex.core.Primitive):
                found[thing.name] = name
    # And whatever can be compiled at all, of internal primitives too.
    found.update(
        (primitive.name, "lowered") for primitive in mlir._lowerings if primitive.name != "jaxplain_forward_only"
    )
    return found


def test_every_primitive_of_jax_is_classed():
    """A new primitive in JAX fails here, until a table of the analysis or REFUSED names it."""
    known = {primitive.name for primitive in KNOWN}
    missing = {name for name in _primitives() if name not in known | REFUSED}
    assert len(_primitives()) > 200
    assert not known & REFUSED
    assert not missing, f"add a row to jaxplain/_ir/primitives.py, or refuse: {sorted(missing)}"


def test_no_rule_stops_a_gradient():
    folder = Path(jx.__file__).parent / "rules"
    assert not [path.name for path in folder.glob("*.py") if "stop_gradient" in path.read_text()]


def test_shard_map_hides_no_gate():
    """Inside `shard_map` constants are cast to vary over devices: `1 − σ` must still be known to lie in [0, 1]."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []

    def score(x):
        return jnp.sum((1 - jax.nn.sigmoid(x @ P["w1"])) * (x @ P["w2"]))

    def kinds_of(x):
        seen.append([row.kind for row in jx.layers(score)(x)])
        return jx.lrp(score, rules=jx.rules.epsilon(0.1))(x)

    xs = jnp.sin(jnp.arange(24.0)).reshape(4, 6)
    sharded = jax.shard_map(jax.vmap(kinds_of), mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    assert relative(jax.jit(sharded)(xs), jax.vmap(kinds_of)(xs)) < 1e-12
    assert seen[0] == seen[1] and "gate" in seen[0]


def test_intervals_hold_for_random_operands():
    """A wrong interval is worse than none: a rule would drop terms, and no error would tell."""
    draw, seen = np.random.default_rng(0), set()
    for primitive, row in ROWS.items():
        if row.interval is None or not row.has(Trait.ELEMENTWISE):
            continue
        for trial in range(8):
            bounds = [tuple(sorted(draw.normal(size=2) * 3)) for _ in range(3)]
            bounds = [(abs(low), abs(low) + high - low) for low, high in bounds] if trial % 2 else bounds
            for n in (1, 2, 3):
                operands = [draw.uniform(low, high, 50) for low, high in bounds[:n]]
                try:
                    values = np.asarray(primitive.bind(*operands))
                except Exception:  # another number of operands, or parameters
                    continue
                seen.add(primitive)
                low, high = row.interval(bounds[:n])
                values = values[np.isfinite(values)]
                assert np.all((values >= low - 1e-9) & (values <= high + 1e-9)), (primitive, bounds[:n])
    assert {lax.tanh_p, lax.mul_p, lax.max_p, lax.exp_p} <= seen


def test_what_a_gather_fills_in_may_be_negative():
    a, b = jnp.sin(jnp.arange(36.0)).reshape(6, 6), jnp.cos(jnp.arange(49.0)).reshape(7, 7)
    read = np.array([0, 1, 2, 3, 4, 5, 99])
    gathered = lambda x: jax.nn.relu(x @ a).at[read].get(mode="fill", fill_value=-5.0)
    joined = lambda x: jnp.concatenate([jax.nn.relu(x @ a), jnp.full(1, -5.0)])
    x = jnp.cos(jnp.arange(6.0))

    @jax.jit
    def explained(x):
        scores = [lambda x, h=h: jnp.sum(jax.nn.relu(h(x) @ b)) for h in (gathered, joined)]
        return [[jx.lrp(f, rules=rule)(x) for f in scores] for rule in (jx.rules.zplus(), jx.rules.gamma())]

    for one, other in explained(x):
        assert relative(one, other) < 1e-12
