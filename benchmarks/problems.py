"""Problems: networks with weights, inputs and labels, as files that any side can read.

A problem is one npz file: `layers` (a JSON list of the kinds in `networks.KINDS`), the weights in the layouts of JAX
(NHWC images, HWIO kernels, (in, out) matrices), `x`, `labels` and `noise` (σ for SmoothGrad).
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    name: str
    layers: list[list[Any]]  # e.g. ["conv", "conv1", 2], ["max_pool"], ["relu"]
    weights: dict[str, np.ndarray]  # "conv1/kernel", "conv1/bias" where there is one; "norm1/gamma", beta, mean, var
    x: np.ndarray
    labels: np.ndarray
    noise: float


def save(problem: Problem, folder: pathlib.Path) -> pathlib.Path:
    path = folder / f"{problem.name}.npz"
    weights = {f"weights/{name}": value for name, value in problem.weights.items()}
    layers = np.array(json.dumps(problem.layers))
    np.savez(path, layers=layers, x=problem.x, labels=problem.labels, noise=problem.noise, **weights)
    return path


def load(path: str | pathlib.Path) -> Problem:
    with np.load(path) as file:
        weights = {key[8:]: file[key] for key in file.files if key.startswith("weights/")}
        layers = json.loads(str(file["layers"]))
        return Problem(pathlib.Path(path).stem, layers, weights, file["x"], file["labels"], float(file["noise"]))


def _chain(*blocks: str | tuple) -> list[list[Any]]:
    return [[block] if isinstance(block, str) else list(block) for block in blocks]


def zoo_network(name: str, batch: int) -> Problem:
    """A trained network of `jaxplain.zoo` on held-out digits."""
    import jax
    from flax import traverse_util

    from jaxplain import datasets, zoo

    if name == "mlp":
        hidden = [layer for i in (1, 2) for layer in (("dense", f"dense{i}"), "relu")]
        layers = _chain("flatten", *hidden, ("dense", "dense3"))
    elif name == "cnn_maxpool":
        convs = [layer for i in (1, 2, 3) for layer in (("conv", f"conv{i}", 1), "relu", "max_pool")]
        layers = _chain(*convs, "flatten", ("dense", "dense1"), "relu", ("dense", "dense2"))
    else:
        raise ValueError(f"the layers of {name!r} are not listed here")
    weights = jax.tree.map(np.asarray, traverse_util.flatten_dict(zoo.load(name).params, sep="/"))
    digits = datasets.mnist()
    return Problem(name, layers, weights, digits.x_test[:batch], digits.y_test[:batch], noise=0.2)


def vgg(batch: int, side: int = 112, widths: tuple[int, ...] = (32, 64, 128, 128), classes: int = 100) -> Problem:
    """Two 3x3 convolutions and a max-pool per width, two dense layers; He weights, random inputs (no ties)."""
    rng = np.random.default_rng(20261123)
    layers: list[Any] = []
    weights: dict[str, np.ndarray] = {}

    def add(kind: str, name: str, shape: tuple[int, ...]) -> None:
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        weights[f"{name}/kernel"] = rng.normal(0, scale, shape).astype(np.float32)
        weights[f"{name}/bias"] = rng.normal(0, 0.05, shape[-1:]).astype(np.float32)
        layers.append((kind, name, 1) if kind == "conv" else (kind, name))

    channels = 3
    for block, width in enumerate(widths, 1):
        for conv in "ab":
            add("conv", f"conv{block}{conv}", (3, 3, channels, width))
            layers.append("relu")
            channels = width
        layers.append("max_pool")
    layers.append("flatten")
    add("dense", "dense1", ((side >> len(widths)) ** 2 * channels, 256))
    layers.append("relu")
    add("dense", "dense2", (256, classes))
    x = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    return Problem(f"vgg{side}", _chain(*layers), weights, x, labels, noise=0.3)


def separable(batch: int, side: int = 224, classes: int = 1000) -> Problem:
    """EfficientNet-Lite0: inverted residual blocks with depthwise 3x3 and 5x5 convolutions, batch-norm, ReLU6.

    It has 50 layers with random weights. The statistics of the batch-norms are those of its own images, so that
    activations keep their scale.
    """
    import jax.numpy as jnp
    from networks import apply_layers

    # expansion, channels, blocks, stride of the first, size
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
    )
    rng = np.random.default_rng(20261124)
    layers: list[list[Any]] = []
    weights: dict[str, np.ndarray] = {}

    def draw(name: str, *shape: int) -> None:
        weights[f"{name}/kernel"] = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)

    def conv(name: str, size: int, n_in: int, n_out: int, stride: int = 1) -> list[list[Any]]:
        draw(name, size, size, n_in, n_out)
        gamma, beta = rng.uniform(0.5, 1.5, n_out), rng.normal(0, 0.3, n_out)
        weights.update({f"{name}/gamma": gamma.astype(np.float32), f"{name}/beta": beta.astype(np.float32)})
        return [["conv", name, stride], ["batch_norm", name]]

    layers += [*conv("stem", 3, 3, 32, 2), ["relu6"]]
    channels = 32
    for stage, (expansion, n_out, blocks, stride, size) in enumerate((*stages, (6, 320, 1, 1, 3)), 1):
        for block in range(blocks):
            name, step, wide = f"block{stage}{'abcd'[block]}", stride if block == 0 else 1, expansion * channels
            body = [*conv(f"{name}_expand", 1, channels, wide), ["relu6"]] if expansion > 1 else []
            body += [
                *conv(f"{name}_depthwise", size, 1, wide, step),
                ["relu6"],
                *conv(f"{name}_project", 1, wide, n_out),
            ]
            layers += [["residual", body]] if step == 1 and channels == n_out else body
            channels = n_out
    layers += [*conv("head", 1, channels, 1280), ["relu6"], ["global_mean"], ["dense", "dense"]]
    draw("dense", 1280, classes)
    weights["dense/bias"] = rng.normal(0, 0.05, classes).astype(np.float32)
    x = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    labels = rng.integers(0, classes, batch).astype(np.int32)

    def observe(name: str, y: Any) -> None:
        weights[f"{name}/mean"], weights[f"{name}/var"] = (np.asarray(v(y, (0, 1, 2))) for v in (jnp.mean, jnp.var))

    apply_layers(layers, weights, jnp.asarray(x), observe)
    return Problem(f"separable{side}", layers, weights, x, labels, noise=0.3)


PROBLEMS = {
    "mlp": lambda batch=256: zoo_network("mlp", batch),
    "cnn_maxpool": lambda batch=256: zoo_network("cnn_maxpool", batch),
    "cnn_maxpool-100": lambda batch=100: zoo_network("cnn_maxpool", batch)._replace(name=f"cnn_maxpool-{batch}"),
    "cnn_maxpool-16": lambda batch=16: zoo_network("cnn_maxpool", batch)._replace(name=f"cnn_maxpool-{batch}"),
    "cnn_maxpool-1": lambda batch=1: zoo_network("cnn_maxpool", batch)._replace(name=f"cnn_maxpool-{batch}"),
    "vgg112": lambda batch=4: vgg(batch),
    "separable224": lambda batch=4: separable(batch),
}
