"""MODELS: the programs that every method is held to. A new kind of network is one entry here.

Each case is a small network with seeded weights in four frameworks' ways of writing it. `score(weights, x, label)` is
what the methods explain; `x` and the labels are a batch of three examples.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx
from helpers import promoting
from jax import lax

N_CLASSES = 4
BATCH = 3


class Case(NamedTuple):
    score: Callable[..., jax.Array]  # score(weights, x, label)
    weights: Any
    xs: Any  # a batch of explained arguments, leading axis BATCH
    labels: jax.Array
    rtol: float = 1e-9  # agreement between two compilations of the same mathematics


MODELS: dict[str, Callable[[], Case]] = {}


def model(build: Callable[[], Case]) -> Callable[[], Case]:
    MODELS[build.__name__] = functools.cache(build)  # built once for all tests: nothing in a case changes
    return build


def normal(seed: int, *shape: int, scale: float = 1.0, dtype: Any = jnp.float64) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(seed), shape, dtype)


def case(score: Callable, weights: Any, *shape: int, rtol: float = 1e-9, dtype: Any = jnp.float64) -> Case:
    return Case(score, weights, normal(99, BATCH, *shape, dtype=dtype), jnp.arange(BATCH) % N_CLASSES, rtol)


# Plain JAX


@model
def dense() -> Case:
    weights = {"w1": normal(0, 6, 8), "b1": normal(1, 8, scale=0.3), "w2": normal(2, 8, N_CLASSES)}
    return case(lambda p, x, y: (jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"])[y], weights, 6)


@model
def dense_no_bias() -> Case:
    weights = [normal(0, 6, 8), normal(1, 8, 8), normal(2, 8, N_CLASSES)]

    def score(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        for w in weights[:-1]:
            x = jnp.maximum(x @ w, 0)
        return (x @ weights[-1])[y]

    return case(score, weights, 6)


@model
def conv_maxpool() -> Case:
    weights = {"conv": normal(0, 3, 3, 2, 4, scale=0.5), "b": normal(1, 4, scale=0.1), "out": normal(2, 36, N_CLASSES)}

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = lax.conv_general_dilated(x[None], p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = lax.reduce_window(
            jax.nn.relu(h + p["b"][None, None, None]), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return (h.ravel() @ p["out"])[y]

    return case(score, weights, 6, 6, 2)


@model
def conv_nchw_avgpool() -> Case:
    weights = {"conv": normal(0, 4, 2, 3, 3, scale=0.5), "out": normal(2, 4, N_CLASSES)}

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = lax.conv_general_dilated(x[None], p["conv"], (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return (jnp.mean(jax.nn.silu(h), axis=(2, 3)) @ p["out"])[0, y]

    return case(score, weights, 2, 6, 6)


@model
def attention() -> Case:
    d = 6
    weights = {name: normal(i, d, d, scale=0.5) for i, name in enumerate("qkvo")} | {"out": normal(9, d, N_CLASSES)}

    def norm(x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = norm(x)
        a = jax.nn.softmax((h @ p["q"]) @ (h @ p["k"]).T / jnp.sqrt(1.0 * d))
        x = x + a @ (h @ p["v"]) @ p["o"]
        return (jnp.mean(jax.nn.gelu(norm(x)), axis=0) @ p["out"])[y]

    return case(score, weights, 5, d)


@model
def recurrent_scan() -> Case:
    weights = {"in": normal(0, 3, 12, scale=0.5), "h": normal(1, 4, 12, scale=0.5), "out": normal(2, 4, N_CLASSES)}

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def gru(h: jax.Array, xt: jax.Array) -> tuple[jax.Array, None]:
            r, z, n = jnp.split(xt @ p["in"], 3)
            hr, hz, hn = jnp.split(h @ p["h"], 3)
            z = jax.nn.sigmoid(z + hz)
            return (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h, None

        h, _ = lax.scan(gru, jnp.zeros_like(x, shape=4), x)
        return (h @ p["out"])[y]

    return case(score, weights, 5, 3)


@model
def scanned_remat() -> Case:
    weights = {"layers": normal(0, 3, 6, 6, scale=0.6), "out": normal(1, 6, N_CLASSES)}

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        @jax.checkpoint
        def block(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return x + jnp.tanh(x @ w), None

        return (lax.scan(block, x, p["layers"])[0] @ p["out"])[y]

    return case(score, weights, 6)


@model
def branches_and_custom_rules() -> Case:
    @jax.custom_vjp
    def clipped(x: jax.Array) -> jax.Array:
        return jnp.clip(x, -1, 1)

    clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * (jnp.abs(x) < 1).astype(g.dtype),))

    def score(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jax.jit(jax.nn.elu)(x @ p["w"])
        h = lax.cond(jnp.sum(x) > 0, lambda h: h, lambda h: 2 * h, h)
        return (clipped(h) @ p["out"])[y] + lax.fori_loop(0, 3, lambda i, s: s + jnp.sin(s), jnp.sum(h))

    # A custom_vjp cannot be differentiated forwards; the transforms that need it say so.
    return case(score, {"w": normal(0, 6, 6, scale=0.4), "out": normal(1, 6, N_CLASSES)}, 6)


@model
def bf16_compute() -> Case:
    weights = [normal(0, 6, 8), normal(1, 8, N_CLASSES)]

    def score(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jax.nn.gelu(x.astype(jnp.bfloat16) @ weights[0].astype(jnp.bfloat16))
        return (h @ weights[1].astype(jnp.bfloat16)).astype(jnp.float32)[y]

    # bf16 has 8 bits: XLA keeps more inside a fusion, so two compilations agree to about 2^-6 only.
    return case(score, weights, 6, rtol=3e-2)


@model
def pytree_input() -> Case:
    weights = {"w": normal(0, 6, N_CLASSES), "v": normal(1, 2, N_CLASSES)}

    def score(p: Any, x: Any, y: jax.Array) -> jax.Array:
        image = jnp.where(x["mask"], x["image"], 0)
        return jnp.tanh(image @ p["w"] + x["meta"][0] ** 2 @ p["v"])[y]

    xs = {"image": normal(3, BATCH, 6), "meta": (normal(4, BATCH, 2),), "mask": normal(5, BATCH, 6) > -1}
    return Case(score, weights, xs, jnp.arange(BATCH))


# Frameworks: the same protocol over models as their users write them


@model
def linen_batchnorm_depthwise() -> Case:
    class Net(linen.Module):
        @linen.compact
        @promoting()
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = linen.Conv(4, (3, 3), use_bias=False, param_dtype=jnp.float64)(x)
            x = linen.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(x)
            x = jax.nn.relu6(x)
            x = linen.Conv(4, (3, 3), feature_group_count=4, param_dtype=jnp.float64)(x)
            x = linen.Dropout(0.5, deterministic=not train)(jax.nn.relu6(x))
            return linen.Dense(N_CLASSES, param_dtype=jnp.float64)(jnp.mean(x, axis=(1, 2)))

    net = Net()
    variables = net.init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)), train=False)
    with promoting():
        variables = jax.tree.map(
            lambda v: v + 0.1 * (jnp.arange(1.0 * v.size).reshape(v.shape) + 0.5) / v.size, variables
        )
    return case(lambda v, x, y: net.apply(v, x[None], train=False)[0, y], variables, 6, 6, 2)


class _Residual(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), param_dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(4, param_dtype=jnp.float64, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), param_dtype=jnp.float64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, N_CLASSES, param_dtype=jnp.float64, rngs=rngs)

    @promoting()
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x)))
        x = nnx.avg_pool(jax.nn.relu(x + self.conv2(x)), (2, 2), (2, 2))
        return self.dense(self.dropout(jnp.mean(x, axis=(1, 2))))


def nnx_model() -> nnx.Module:
    """As its constructor leaves it: in training mode."""
    return _Residual(nnx.Rngs(0))


@model
def nnx_residual_batchnorm() -> Case:
    net = nnx_model()
    net.eval()
    graphdef, state = nnx.split(net)
    state = jax.tree.map(lambda v: v.astype(jnp.float64) if v.dtype == jnp.float32 else v, state)
    return case(lambda state, x, y: nnx.merge(graphdef, state)(x[None])[0, y], state, 6, 6, 2)


@model
def equinox_conv() -> Case:
    keys = jax.random.split(jax.random.key(0), 2)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 3, 3, stride=2, key=keys[0], dtype=jnp.float64),
            eqx.nn.Lambda(jax.nn.leaky_relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(12, N_CLASSES, key=keys[1], dtype=jnp.float64),
        ]
    )
    arrays, static = eqx.partition(net, eqx.is_array)
    return case(lambda arrays, x, y: eqx.combine(arrays, static)(x)[y], arrays, 2, 6, 6)
