"""Networks as pure functions with parameters: load, train, randomize."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx, traverse_util

from jaxplain._errors import SettingError, explain_error
from jaxplain._leaves import same_dtype
from jaxplain.datasets import mnist
from jaxplain.zoo._networks import CNN, GAP, MLP, AllConv, ClutteredFlatten, ClutteredGAP, StridedCNN
from jaxplain.zoo._training import fit, scenes, shifted

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Network:
    """A network: a pure function and its trained parameters.

    Attributes:
        name: Name of the network, from `NAMES` or `SCENE_NAMES`.
        params: Nested dictionary of arrays, e.g. `params["conv1"]["kernel"]`.
        apply: Pure function `apply(params, images)` → logits, from (…, 28, 28, 1), or (…, 40, 40, 1) for `SCENE_NAMES`,
            to (…, 10). The same object for every network of this name, so `jax.jit(net.apply)` compiles once.
    """

    name: str
    params: Params
    apply: Callable[[Params, jax.Array | np.ndarray], jax.Array]

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """The logits (…, 10) of images (…, height, width, 1)."""
        return self.apply(self.params, images)

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Network({self.name!r}, {size:,} parameters)"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is built and trained.

    Attributes:
        build: A Linen module, or a function from `rngs` to an NNX module.
        epochs: Number of epochs.
        learning_rate: Highest learning rate.
        accuracy: Accuracy that it must reach on the data of `held_out`.
        examples: Makes the examples of an epoch.
    """

    build: linen.Module | Callable[..., nnx.Module]
    epochs: int
    learning_rate: float
    accuracy: float
    examples: Callable[..., tuple[jax.Array, jax.Array]] = shifted


RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(partial(MLP, 256, True), 150, 3e-3, 0.97),
    "mlp_no_bias": Recipe(partial(MLP, 256, False), 150, 3e-3, 0.97),
    "cnn_maxpool": Recipe(partial(CNN, nnx.max_pool, True), 18, 3e-3, 0.985),
    "cnn_avgpool": Recipe(partial(CNN, nnx.avg_pool, False), 16, 3e-3, 0.975),
    "cnn_strided": Recipe(StridedCNN, 40, 3e-3, 0.975),
    "all_conv": Recipe(AllConv(), 10, 6e-3, 0.975),
    "gap": Recipe(GAP, 16, 1e-2, 0.975),
    "gap_cluttered": Recipe(ClutteredGAP, 24, 5e-3, 0.975, scenes),
    "flatten_cluttered": Recipe(ClutteredFlatten, 24, 3e-3, 0.975, scenes),
}

# Networks for digits, 28×28, and for scenes of cluttered MNIST, 40×40.
NAMES: tuple[str, ...] = tuple(name for name, recipe in RECIPES.items() if recipe.examples is shifted)
SCENE_NAMES: tuple[str, ...] = tuple(name for name, recipe in RECIPES.items() if recipe.examples is scenes)

_WEIGHTS = Path(__file__).parent / "weights"


def load(name: str) -> Network:
    """The network `name`, one of `NAMES` or `SCENE_NAMES`, with the weights that ship with jaxplain.

    The weights are float32, even with `jax_enable_x64`. For float64:
    `dataclasses.replace(net, params=jax.tree.map(lambda w: w.astype("float64"), net.params))`.

    Raises:
        SettingError: There is no such network.
    """
    _, apply = _functional(name)
    with np.load(_WEIGHTS / f"{name}.npz") as file:
        params = {path: jnp.asarray(file[path]) for path in file.files}
    return Network(name, traverse_util.unflatten_dict(params, sep="/"), apply)


def save(net: Network, folder: str | Path) -> Path:
    """Writes `<folder>/<name>.npz`, with one array per slash-joined parameter path."""
    arrays = traverse_util.flatten_dict(net.params, sep="/")
    path = Path(folder) / f"{net.name}.npz"
    np.savez_compressed(path, **jax.tree.map(np.asarray, arrays))
    return path


def train(name: str, seed: int = 0, epochs: int | None = None, progress: bool = True) -> Network:
    """Trains a network from scratch on the 9,000 training digits.

    The digits are shifted by up to two pixels at random. Networks for scenes get new scenes of them in each epoch.
    Takes less than a minute on two cores, or five with scenes. The same seed gives the same weights on the same
    machine.

    Arguments:
        name: Name of the network, from `NAMES` or `SCENE_NAMES`.
        seed: Seed of the initial weights and the examples.
        epochs: Number of epochs of 9,000 examples each. `None` is the number used for the weights that ship.
        progress: Whether to show a progress bar.
    """
    init, apply = _functional(name)
    recipe = RECIPES[name]
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    digits = mnist()
    params = fit(
        init(init_key),
        apply,
        digits.x_train,
        digits.y_train,
        examples=recipe.examples,
        epochs=recipe.epochs if epochs is None else epochs,
        learning_rate=recipe.learning_rate,
        key=fit_key,
        progress=name if progress else None,
    )
    return Network(name, params, apply)


def randomized(net: Network, key: jax.Array) -> Network:
    """`net` with newly initialized weights of the same dtypes: the control for sanity checks.

    An explanation of this network cannot depend on anything learned.
    """
    init, _ = _functional(net.name)
    fresh = jax.tree.map(lambda new, old: new.astype(old.dtype), init(key), net.params)
    return dataclasses.replace(net, params=fresh)


def accuracy(net: Network, images: jax.Array | np.ndarray, labels: jax.Array | np.ndarray) -> float:
    """The share of images (n, height, width, 1) that are classified as their labels (n,)."""
    apply = jax.jit(net.apply)
    right = 0
    for start in range(0, len(images), 1000):  # in parts, to bound memory
        part = slice(start, start + 1000)
        logits = apply(net.params, jnp.asarray(images[part]))
        right += int(jnp.sum(jnp.equal(*same_dtype(logits.argmax(-1), labels[part]))))
    return right / len(images)


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels for reporting the accuracy of the network `name`.

    These are the 1,000 held-out digits or, for networks of scenes, 2,000 fixed scenes made of them.
    """
    _functional(name)  # refuses unknown names
    digits = mnist()
    if name in NAMES:
        return digits.x_test, digits.y_test
    make = jax.jit(partial(scenes, n=2000))
    images, labels = make(digits.x_test, digits.y_test, jax.random.key(20261123))
    return np.asarray(images), np.asarray(labels)


@functools.cache
def _functional(name: str) -> tuple[Callable[..., Params], Callable[..., jax.Array]]:
    """`init(key)` → params and `apply(params, images)` → logits."""
    if name not in RECIPES:
        raise SettingError(explain_error(f"zoo: there is no network {name!r}.", need=", ".join(map(repr, RECIPES))))
    build = RECIPES[name].build
    if isinstance(build, linen.Module):
        return _linen_functional(build)
    return _nnx_functional(build)


def _linen_functional(
    module: linen.Module,
) -> tuple[Callable[..., Params], Callable[..., jax.Array]]:
    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, 28, 28, 1), jnp.float32))["params"]

    def apply(params: Params, images: jax.Array) -> jax.Array:
        return module.apply({"params": params}, images)

    return init, apply


def _nnx_functional(
    build: Callable[..., nnx.Module],
) -> tuple[Callable[..., Params], Callable[..., jax.Array]]:
    def init(key: jax.Array) -> Params:
        module = build(rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    # The structure alone, without computing any weights.
    abstract = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(params=0)))
    graph, _ = nnx.split(abstract, nnx.Param)

    def apply(params: Params, images: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):  # because average pooling of Flax divides floats by integers
            return nnx.merge(graph, params)(images)

    return init, apply
