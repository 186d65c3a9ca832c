"""What is explained: networks with weights, inputs and labels, as files that any side can read.

A problem is one npz file: `layers` (a JSON list; the only kinds are those of `KINDS`), the weights in the layouts of JAX
(NHWC images, HWIO kernels, (in, out) matrices), `x`, `labels`, `noise` (σ for SmoothGrad) and `tolerance` (relative L2).
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

KINDS = ("conv", "dense", "relu", "max_pool", "flatten")


class Problem(NamedTuple):
    name: str
    layers: list[list[Any]]  # e.g. ["conv", "conv1"] (3x3, stride 1, SAME), ["max_pool"] (2x2, SAME), ["relu"]
    weights: dict[str, np.ndarray]  # "conv1/kernel", "conv1/bias"
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
        convs = [layer for i in (1, 2, 3) for layer in (("conv", f"conv{i}"), "relu", "max_pool")]
        layers = _chain(*convs, "flatten", ("dense", "dense1"), "relu", ("dense", "dense2"))
    else:
        raise ValueError(f"the layers of {name!r} are not written down here")
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
        layers.append((kind, name))

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


PROBLEMS = {
    "mlp": lambda batch=256: zoo_network("mlp", batch),
    "cnn_maxpool": lambda batch=256: zoo_network("cnn_maxpool", batch),
    "vgg112": lambda batch=4: vgg(batch),
}
