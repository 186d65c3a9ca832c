"""NETS: the networks of `golden/make_lrp.py` in plain JAX, for one example.

`score(weights, x, label)` is what is explained; `weights` are the stored arrays by name, and `norm_eps` with them.
Batch-norm stays a function of its own here, where the peer was given it folded into the convolution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

HEADS = 2


def along_last(v: jax.Array, like: jax.Array) -> jax.Array:
    """v with the rank of `like`."""
    return jnp.expand_dims(v, tuple(range(like.ndim - 1)))


def dense(w: Any, x: jax.Array, name: str) -> jax.Array:
    y = x @ w[f"{name}.kernel"]
    return y + along_last(w[f"{name}.bias"], y)


def conv(w: Any, x: jax.Array, name: str, stride: int = 1, padding: int = 0, groups: int = 1) -> jax.Array:
    """A convolution with its bias, where it has one, and the batch-norm after it."""
    y = lax.conv_general_dilated(
        x[None],
        w[f"{name}.kernel"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )[0]
    if f"{name}.bias" in w:
        y = y + along_last(w[f"{name}.bias"], y)
    mean, var, gamma, beta = (along_last(w[f"{name}.{part}"], y) for part in ("mean", "var", "gamma", "beta"))
    return (y - mean) / jnp.sqrt(var + w["norm_eps"]) * gamma + beta


def average_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    window = (size, size, 1), (stride, stride, 1)
    return lax.reduce_window(x, 0.0, lax.add, *window, "VALID") / size**2


def layer_norm(w: Any, x: jax.Array, name: str) -> jax.Array:
    mean = jnp.mean(x, -1, keepdims=True)
    var = jnp.var(x, -1, keepdims=True)
    gamma, beta = (along_last(w[f"{name}.{part}"], x) for part in ("gamma", "beta"))
    return (x - mean) / jnp.sqrt(var + w["norm_eps"]) * gamma + beta


def mlp(w: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(dense(w, x, "1"))
    x = jax.nn.relu(dense(w, x, "2"))
    return dense(w, x, "3")


def residual(w: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(conv(w, x, "stem", stride=2, padding=1))
    h = jax.nn.relu(conv(w, x, "body1", padding=1))
    x = jax.nn.relu(conv(w, h, "body2", padding=1) + x)
    return dense(w, average_pool(x, 2, 2).ravel(), "head")


def separable(w: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu6(conv(w, x, "stem", stride=2))
    for i in (1, 2):
        x = jax.nn.relu6(conv(w, x, f"depthwise{i}", padding=1, groups=x.shape[-1]))
        x = jax.nn.relu6(conv(w, x, f"pointwise{i}"))
    return dense(w, jnp.mean(average_pool(x, 2, 1), (0, 1)), "head")


def attention(w: Any, x: jax.Array) -> jax.Array:
    tokens, width = x.shape

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(tokens, HEADS, width // HEADS).swapaxes(0, 1)

    h = layer_norm(w, x, "norm1")
    q, k, v = (heads(dense(w, h, name)) for name in "qkv")
    mixed = jax.nn.softmax(q @ k.swapaxes(1, 2) / (width // HEADS) ** 0.5) @ v
    x = x + dense(w, mixed.swapaxes(0, 1).reshape(tokens, width), "out")
    h = jax.nn.gelu(dense(w, layer_norm(w, x, "norm2"), "up"), approximate=False)
    return dense(w, jnp.mean(x + dense(w, h, "down"), 0), "head")


class Net(NamedTuple):
    logits: Callable[[Any, jax.Array], jax.Array]

    def score(self, weights: Any, x: jax.Array, label: jax.Array) -> jax.Array:
        return self.logits(weights, x)[label]


NETS = {net.__name__: Net(net) for net in (mlp, residual, separable, attention)}
