"""MobileNetV2 (Sandler et al., CVPR 2018) with its ImageNet weights, in Flax NNX, and five photographs."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

HERE = pathlib.Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Expansion, channels, blocks, first stride.
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


class ConvNorm(nnx.Module):
    """Convolution and batch normalization, and ReLU6 if the block has one there."""

    def __init__(
        self, n_in: int, n_out: int, size: int, stride: int, *, groups: int = 1, bends: bool = True, rngs: Any
    ):
        pad = [((size - 1) // 2,) * 2] * 2
        shape = {"kernel_size": (size, size), "strides": stride, "padding": pad, "feature_group_count": groups}
        self.conv = nnx.Conv(n_in, n_out, **shape, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(n_out, use_running_average=True, epsilon=1e-5, rngs=rngs)
        self.bends = bends

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.conv(x))
        return relu6(x) if self.bends else x


class Block(nnx.Module):
    """An inverted residual: widened by a 1×1 convolution, filtered channel by channel, and narrowed again."""

    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int, *, rngs: Any):
        n = n_in * expansion
        self.expand = nnx.data(ConvNorm(n_in, n, 1, 1, rngs=rngs) if expansion > 1 else None)
        self.depthwise = ConvNorm(n, n, 3, stride, groups=n, rngs=rngs)
        self.project = ConvNorm(n, n_out, 1, 1, bends=False, rngs=rngs)
        self.is_residual = stride == 1 and n_in == n_out

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x if self.expand is None else self.expand(x)
        h = self.project(self.depthwise(h))
        return x + h if self.is_residual else h


class MobileNetV2(nnx.Module):
    """Images (n, 224, 224, 3) with values from 0 to 1 → logits (n, 1000). The normalization of colors is inside."""

    def __init__(self, *, rngs: Any):
        self.stem = ConvNorm(3, 32, 3, 2, rngs=rngs)
        blocks, n = [], 32
        for expansion, channels, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(Block(n, channels, expansion, stride if i == 0 else 1, rngs=rngs))
                n = channels
        self.blocks = nnx.List(blocks)
        self.last = ConvNorm(n, 1280, 1, 1, rngs=rngs)
        self.head = nnx.Linear(1280, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = (x - jnp.asarray(MEAN, x.dtype)) / jnp.asarray(STD, x.dtype)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).mean((1, 2)))


def load(dtype: Any = jnp.float32) -> MobileNetV2:
    """The network with the weights of torchvision, whose names and layouts the file keeps."""
    net = nnx.eval_shape(lambda: MobileNetV2(rngs=nnx.Rngs(0)))
    with np.load(HERE / "mobilenet_v2.npz") as file:
        stored = {name: jnp.asarray(file[name], dtype) for name in file.files}

    def fill(part: ConvNorm, conv: str, norm: str) -> None:
        part.conv.kernel = nnx.Param(stored[f"{conv}.weight"].transpose(2, 3, 1, 0))
        part.norm.scale = nnx.Param(stored[f"{norm}.weight"])
        part.norm.bias = nnx.Param(stored[f"{norm}.bias"])
        part.norm.mean = nnx.BatchStat(stored[f"{norm}.running_mean"])
        part.norm.var = nnx.BatchStat(stored[f"{norm}.running_var"])

    fill(net.stem, "features.0.0", "features.0.1")
    for i, block in enumerate(net.blocks, 1):
        name, n = f"features.{i}.conv", 0
        for part in (block.expand, block.depthwise):
            if part is not None:
                fill(part, f"{name}.{n}.0", f"{name}.{n}.1")
                n += 1
        fill(block.project, f"{name}.{n}", f"{name}.{n + 1}")
    fill(net.last, "features.18.0", "features.18.1")
    net.head.kernel, net.head.bias = nnx.Param(stored["classifier.1.weight"].T), nnx.Param(stored["classifier.1.bias"])
    return net


class Photos(NamedTuple):
    """Five photographs (5, 224, 224, 3) with values from 0 to 1, names, classes, and the logits of another library."""

    x: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    logits: np.ndarray


@functools.cache
def photos() -> Photos:
    with np.load(HERE / "photos.npz") as file:
        return Photos(
            file["photos"].astype(np.float32) / 255,
            tuple(map(str, file["names"])),
            tuple(map(str, file["imagenet_names"])),
            file["logits"],
        )
