"""DeepLIFT: summation to delta on every model, every operation, random programs and known traps of other libraries."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deeplift_cases import RULES, W2, B, U, V, W, X, gap, layer_norm, missing
from flax import linen, nnx
from helpers import promoting, relative
from jax import lax
from models import MODELS
from registry import scaled
from test_respelled import _random_program

import jaxplain as jx

WAYS = {"rescale in float32": ("float32", RULES[0])} | {rule[0]: ("float64", rule) for rule in RULES}
MODEL_WAYS = list(itertools.product(MODELS, WAYS))
SOME = [row for i, row in enumerate(MODEL_WAYS) if (i + i // len(WAYS)) % 4 == 0]  # every model, in one way each


@pytest.mark.rows(("model", "way"), MODEL_WAYS, SOME)
def test_every_model_sums_to_delta(model, way):
    (dtype, rule), case = WAYS[way], MODELS[model]()

    def cast(tree):
        return jax.tree.map(lambda a: a.astype(dtype) if getattr(a, "dtype", None) == jnp.float64 else a, tree)

    weights, x = cast(case.weights), cast(jax.tree.map(lambda a: a[0], case.xs))
    limit = {"float64": 1e-9, "float32": 1e-4}[dtype]
    if model == "bf16_compute":
        limit = 2**-7  # it computes with 8 bits, and so its own values miss by as much
    settings = {"rule": rule[0], "fallback": rule[1], "baseline": lambda x: scaled(0.4, x)}
    assert gap(lambda x: case.score(weights, x, 1), x, **settings) < limit


# One thing that is not a layer each. Where a reference of zero takes another way, the second one is left out.
SCORES = {
    "sort": lambda x: jnp.sort(x @ W) @ V,
    "sort with its payload": lambda x: lax.sort((x @ W, x[:5]), num_keys=1)[0] @ V,
    "median": lambda x: jnp.median(x @ W),
    "top k": lambda x: lax.top_k(x @ W, 3)[0] @ V[:3],
    "argsort and gather": lambda x: (x @ W)[jnp.argsort(x @ W)] @ V,
    "sorted rows": lambda x: jnp.take_along_axis(jnp.outer(x @ W, V), jnp.argsort(jnp.outer(x @ W, V)), 1)[:, 2].sum(),
    "where as a maximum": lambda x: jnp.where(x[:5] > x @ W, x[:5], x @ W) @ V,
    "where as a ReLU": lambda x: jnp.where(x @ W > 0, x @ W, 0) @ V,
    "maximum": lambda x: jnp.maximum(x @ W, jnp.tanh(x[:5])) @ V,
    "minimum": lambda x: jnp.minimum(x @ W, jnp.tanh(x[:5])) @ V,
    "max": lambda x: jnp.max(x @ W),
    "max over two axes": lambda x: jnp.max(jnp.outer(x @ W, x), 1) @ V,
    "cumulative maximum": lambda x: lax.cummax(x @ W) @ V,
    "segment maximum": lambda x: jax.ops.segment_max(x @ W, jnp.array([0, 1, 1, 0, 2]), 3) @ V[:3],
    "softmax": lambda x: jax.nn.softmax(x @ W)[0],
    "softmax by hand": lambda x: (jnp.exp(x @ W) / jnp.exp(x @ W).sum()) @ V,
    "saturated softmax": lambda x: jax.nn.softmax(100 * x @ W) @ V,
    "masked softmax": lambda x: jax.nn.softmax(jnp.where(jnp.arange(5) < 3, x @ W, -jnp.inf)) @ V,
    "softmax with one more term": lambda x: (jnp.exp(x @ W) / (1 + jnp.exp(x @ W).sum())) @ V,
    "softmax over segments": lambda x: _segment_softmax(x @ W, jnp.array([0, 1, 1, 0, 1])) @ V,
    "attention": lambda x: (jax.nn.softmax(jnp.outer(x, x)) @ jnp.outer(x, V)).sum(),
    "log softmax": lambda x: jax.nn.log_softmax(x @ W)[2],
    "logsumexp": lambda x: jax.nn.logsumexp(3 * x @ W),
    "logsumexp by hand": lambda x: jnp.log(jnp.sum(jnp.exp(x @ W))),
    "logaddexp": lambda x: jnp.logaddexp(x @ W, x[:5]) @ V,
    "power of two values": lambda x: jnp.sum(jax.nn.softplus(x @ W) ** jnp.tanh(x[:5])),
    "arctan2": lambda x: jnp.arctan2(x @ W, x[:5]) @ V,
    "quotient": lambda x: jnp.sum((x @ W) / (2 + jnp.tanh(x[:5]))),
    "quotient by a number": lambda x: (x @ W) @ V / (3 + jnp.cos(x).sum() / 6),
    "square as a product": lambda x: jnp.sum((x @ W) * (x @ W)),
    "bilinear": lambda x: (x @ W) @ U @ (x @ W2),
    "convolution of two values": lambda x: jnp.convolve(x @ W, x @ W2) @ jnp.cos(jnp.arange(9.0)),
    "fourier transform": lambda x: jnp.fft.irfft(jnp.fft.rfft(jnp.tanh(x))) @ x,
    "layer norm": lambda x: layer_norm(x @ W) @ V,
    "rms norm": lambda x: ((x @ W) / jnp.sqrt(jnp.mean((x @ W) ** 2) + 1e-3)) @ V,
    "absolute value": lambda x: jnp.abs(x @ W) @ V,
    "square root at zero": lambda x: jnp.sqrt(jax.nn.relu(x @ W)) @ V,
    "scatter": lambda x: (jnp.zeros(8).at[jnp.array([1, 2, 2, 5, 7])].add(x @ W) ** 2).sum(),
    "dynamic slice": lambda x: lax.dynamic_slice(jnp.tanh(x @ W), (jnp.int32(2),), (2,)).sum(),
    "scan": lambda x: lax.scan(lambda c, t: (jnp.tanh(c @ U + t), c * t), x @ W, x.reshape(6, 1))[1].sum(),
    "carry that starts constant": lambda x: lax.scan(lambda c, t: (c * 0.5 + jnp.tanh(t), None), 0.0, x)[0],
    "branch by an argument": lambda x: lax.switch(1, [jnp.sin, jnp.cos], x @ W) @ V,
    "checkpoint": lambda x: jax.checkpoint(lambda x: jax.nn.gelu(x @ W) @ V)(x),
    "selu": lambda x: jax.nn.selu(x @ W) @ V,
    "relu6": lambda x: jax.nn.relu6(3 * x @ W) @ V,
}


def _segment_softmax(u, ids):
    e = jnp.exp(u - jax.ops.segment_max(u, ids, 2)[ids])
    return e / jax.ops.segment_sum(e, ids, 2)[ids]


SETTINGS = {
    "from a point": ({"baseline": B}, 1e-12),
    "from zero": ({}, 1e-11),
    "reveal_cancel": ({"baseline": B, "rule": "reveal_cancel", "fallback": "rescale"}, 1e-11),
}
OPERATIONS = list(itertools.product(SCORES, SETTINGS))


@pytest.mark.rows(
    ("name", "way"),
    OPERATIONS,
    [row for i, row in enumerate(OPERATIONS) if (i + i // len(SETTINGS)) % len(SETTINGS) == 0],
)
def test_every_operation_sums_to_delta(name, way):
    settings, limit = SETTINGS[way]
    explain = jax.jit(lambda x, x0: jx.with_info(jx.deeplift(SCORES[name], **settings | {"baseline": x0}))(x))
    x0 = settings.get("baseline", jnp.zeros(6))
    assert missing(*explain(X, x0)) < limit
    assert np.array_equal(explain(X, X)[0], np.zeros(6))


@pytest.mark.rows("seed", range(24), range(8))
def test_random_programs_sum_to_delta(seed):
    score, draw = _random_program(seed), np.random.default_rng(seed)
    x, baseline = jnp.asarray(draw.normal(size=(2, 4)))
    for rule, fallback in RULES[:2]:
        explain = jx.with_info(jx.deeplift(score, baseline=baseline, rule=rule, fallback=fallback))
        attribution, info = jax.jit(explain)(x)
        scale = max(abs(float(info.value - info.baseline_value)), float(jnp.abs(attribution).sum()), 1e-3)
        assert abs(float(info.gap)) < 1e-9 * scale


def _reused():
    act = linen.relu  # one function object, called twice; as a module in PyTorch, its hook keeps the last call only

    class Net(linen.Module):
        @linen.compact
        @promoting()
        def __call__(self, x):
            x = act(linen.Dense(8, param_dtype=jnp.float64)(x))
            return linen.Dense(1, param_dtype=jnp.float64)(act(linen.Dense(8, param_dtype=jnp.float64)(x)))[0]

    net = Net()
    return functools.partial(net.apply, net.init(jax.random.key(0), X)), X


def _mlp_of(act, *, residual=False, end=lambda z: z[0]):
    def score(x):
        h = act(x @ W)
        h = act(h @ U + (h if residual else 0))
        return end(h @ U + V)

    return score, X


def _images(pool):
    net = nnx.Sequential(
        nnx.Conv(1, 4, (3, 3), param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, use_running_average=True, param_dtype=jnp.float64, rngs=nnx.Rngs(1)),
        nnx.relu,
        functools.partial(pool, window_shape=(2, 2), strides=(2, 2)),
        lambda x: x.reshape(*x.shape[:-3], -1),
        nnx.Linear(64, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(2)),
    )
    return promoting()(lambda x: net(x[None])[0, 1]), jax.random.normal(jax.random.key(0), (8, 8, 1))


@promoting()
def _lstm():
    rnn = linen.RNN(linen.LSTMCell(8, param_dtype=jnp.float64))
    x = jax.random.normal(jax.random.key(1), (5, 6))
    variables = rnn.init(jax.random.key(0), x[None])
    return promoting()(lambda x: rnn.apply(variables, x[None])[0, -1, 0]), x


@promoting()
def _transformer_block():
    block = linen.MultiHeadDotProductAttention(2, param_dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (5, 6))
    variables = block.init(jax.random.key(0), x, x)
    norm = linen.LayerNorm(param_dtype=jnp.float64)
    scale = norm.init(jax.random.key(0), x)

    @promoting()
    def score(x):
        return jnp.sum((x + block.apply(variables, norm.apply(scale, x), norm.apply(scale, x)))[0] * V[0])

    return score, x


COMPLAINTS = {
    "one activation used twice (Captum 199, 200, 378, 578, 934, 1104; SHAP 1479, 3725)": _reused,
    "relu as a function, not a module (SHAP 3938: off by 0.9)": lambda: _mlp_of(jax.nn.relu),
    "a residual addition (deeplift 127)": lambda: _mlp_of(jax.nn.relu, residual=True),
    "an activation that is not on the list: SELU (SHAP 3611: off by 8.4)": lambda: _mlp_of(jax.nn.selu),
    "ReLU6 and GELU, not on Captum's list": lambda: _mlp_of(lambda z: jax.nn.gelu(jax.nn.relu6(z))),
    "a softmax output (Captum 1085)": lambda: _mlp_of(jax.nn.relu, end=lambda z: jax.nn.softmax(z)[0]),
    "exponentials and products (Captum 1085)": lambda: _mlp_of(lambda z: jnp.exp(-z * z) * jnp.tanh(z)),
    "a minimum of two branches (deeplift 77)": lambda: _mlp_of(lambda z: jnp.minimum(z, jnp.roll(z, 1) * 0.5)),
    "max-pooling and batch-norm (Captum: off by 0.2)": lambda: _images(nnx.max_pool),
    "average pooling and batch-norm": lambda: _images(nnx.avg_pool),
    "an LSTM (deeplift 85)": _lstm,
    "attention and layer norm (SHAP pull 3890)": _transformer_block,
}


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_the_sums_that_users_of_other_libraries_complain_about(complaint, full):
    score, x = COMPLAINTS[complaint]()
    baseline = jax.random.normal(jax.random.key(9), x.shape)
    explain = jx.with_info(jx.deeplift(score, baseline=baseline))
    (explained, info), gradient = jax.jit(lambda x: (explain(x), jax.grad(score)(x)))(x)
    assert missing(explained, info) < 1e-12
    if full:
        single = lambda x: score(x.astype(jnp.float64)).astype(jnp.float32)
        assert gap(single, x.astype(jnp.float32), baseline=baseline.astype(jnp.float32)) < 1e-6
    # And it is not input × gradient under another name.
    assert relative(explained, (x - baseline) * gradient) > 1e-3
