"""The architectures of the zoo, written as a user would write them.

`AllConv` is a Flax Linen module and the others are Flax NNX modules, so that tests and examples exercise both styles.
None of them uses jaxplain.

All take images with values in [0, 1] (raw pixels, no mean subtracted) and return logits of shape (…, 10). Those whose
names begin with `Cluttered` take scenes of cluttered MNIST, (…, 40, 40, 1), and the others digits, (…, 28, 28, 1). A
network computes in the dtype of its parameters and images, without casts.
"""

# Type checkers that do not follow flax see its modules and decorators as Any.
# mypy: disable-error-code="misc,untyped-decorator"

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class MLP(nnx.Module):
    """784 – width – width – 10 with ReLU.

    With `use_bias=False` it is positively homogeneous, f(cx) = c f(x) for c > 0, and so f(x) = ∇f(x)·x.
    """

    def __init__(self, width: int, use_bias: bool, *, rngs: nnx.Rngs) -> None:
        self.dense1 = nnx.Linear(28 * 28, width, use_bias=use_bias, rngs=rngs)
        self.dense2 = nnx.Linear(width, width, use_bias=use_bias, rngs=rngs)
        self.dense3 = nnx.Linear(width, 10, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-3], -1)  # (..., 784)
        x = nnx.relu(self.dense1(x))
        x = nnx.relu(self.dense2(x))
        return self.dense3(x)


class CNN(nnx.Module):
    """Three times convolution, ReLU and 2×2 pooling, then two dense layers.

    `pool` is `nnx.max_pool` or `nnx.avg_pool`. The maps shrink 28 → 14 → 7 → 4, the last time with one row and column
    of padding.
    """

    def __init__(self, pool: Callable[..., jax.Array], use_bias: bool, *, rngs: nnx.Rngs) -> None:
        self.pool = pool
        self.conv1 = nnx.Conv(1, 32, (3, 3), use_bias=use_bias, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), use_bias=use_bias, rngs=rngs)
        self.conv3 = nnx.Conv(64, 128, (3, 3), use_bias=use_bias, rngs=rngs)
        self.dense1 = nnx.Linear(4 * 4 * 128, 128, use_bias=use_bias, rngs=rngs)
        self.dense2 = nnx.Linear(128, 10, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nnx.relu(conv(x))
            x = self.pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = x.reshape(*x.shape[:-3], -1)  # (..., 4 * 4 * 128)
        x = nnx.relu(self.dense1(x))
        return self.dense2(x)


class StridedCNN(nnx.Module):
    """Two strided convolutions and two dense layers with ReLU, as in the digit experiment of DeepLIFT's authors.

    There is no pooling, so every nonlinearity is a ReLU. The maps shrink 28 → 13 → 5, without padding.
    """

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (4, 4), strides=(2, 2), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (4, 4), strides=(2, 2), padding="VALID", rngs=rngs)
        self.dense1 = nnx.Linear(5 * 5 * 64, 128, rngs=rngs)
        self.dense2 = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        x = x.reshape(*x.shape[:-3], -1)  # (..., 5 * 5 * 64)
        x = nnx.relu(self.dense1(x))
        return self.dense2(x)


class GAP(nnx.Module):
    """Convolutions, global average pooling, one dense layer without bias.

    The network of class activation maps: the logits are the spatial mean of the last maps, (…, 7, 7, 128), times
    `dense/kernel`, so the map of a class is an exact decomposition of its logit.
    """

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.conv3 = nnx.Conv(64, 128, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(128, 10, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.conv2(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.conv3(x))
        return self.dense(jnp.mean(x, axis=(-3, -2)))


class _Cluttered(nnx.Module):
    """The convolutions of both networks for scenes of cluttered MNIST.

    Each position of the last maps, (…, 10, 10, width), has a receptive field of 26×26 pixels, which contains a whole
    digit (about 20 pixels high).
    """

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.conv3 = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.conv4 = nnx.Conv(64, width, (3, 3), rngs=rngs)

    def last_maps(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.conv2(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.conv3(x))
        return nnx.relu(self.conv4(x))


class ClutteredGAP(_Cluttered):
    """`GAP` for scenes: the logits are the spatial mean of the last maps times `dense/kernel`."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(128, rngs)
        self.dense = nnx.Linear(128, 10, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(jnp.mean(self.last_maps(x), axis=(-3, -2)))


class ClutteredFlatten(_Cluttered):
    """Two dense layers instead of the average, so that each position of the last maps has its own weights."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(48, rngs)
        self.dense1 = nnx.Linear(10 * 10 * 48, 64, rngs=rngs)
        self.dense2 = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.last_maps(x)
        x = x.reshape(*x.shape[:-3], -1)  # (..., 10 * 10 * 48)
        x = nnx.relu(self.dense1(x))
        return self.dense2(x)


class AllConv(nn.Module):
    """Convolutions only, in Flax Linen: strides instead of pooling.

    The last convolution makes one 7×7 map per class; its mean is the logit.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(32, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(48, (2, 2), strides=(2, 2), name="down1")(x))
        x = nn.relu(nn.Conv(64, (3, 3), name="conv2")(x))
        x = nn.relu(nn.Conv(96, (2, 2), strides=(2, 2), name="down2")(x))
        x = nn.relu(nn.Conv(96, (3, 3), name="conv3")(x))
        x = nn.Conv(10, (1, 1), name="conv4")(x)
        return jnp.mean(x, axis=(-3, -2))
