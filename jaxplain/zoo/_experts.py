"""Trained density models of the digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._errors import SettingError, explain_error
from jaxplain.datasets import mnist
from jaxplain.experts import MADE, RBM, VAE, made, rbm, vae

_LAYERS = ((0, 0),) * 3  # (W, b) of each

# For each expert its training function and a pytree of its structure.
_EXPERTS: dict[str, tuple[Callable[..., Any], Any]] = {
    "rbm": (rbm, RBM(0, 0, 0, None)),  # type: ignore[arg-type]
    "vae": (partial(vae, width=300), VAE(_LAYERS, _LAYERS)),  # type: ignore[arg-type]
    "made": (partial(made, jitter=0.5), MADE(0, 0, 0, 0, 0)),  # type: ignore[arg-type]
}
EXPERT_NAMES: tuple[str, ...] = tuple(_EXPERTS)
_WEIGHTS = Path(__file__).parent / "weights"


def load_expert(name: str) -> Any:
    """The density model `name`, one of `EXPERT_NAMES`, trained on the 9,000 training digits.

    Its arrays are float32, although the shipped weights are rounded to float16.

    Raises:
        SettingError: There is no such expert.
    """
    _, structure = _known(name)
    with np.load(_WEIGHTS / f"{name}.npz") as file:
        leaves = [jnp.asarray(file[str(number)], jnp.float32) for number in range(len(file.files))]
    return jax.tree.unflatten(jax.tree.structure(structure), leaves)


def save_expert(name: str, expert: RBM | VAE | MADE, folder: str | Path) -> Path:
    """Writes `<folder>/<name>.npz`, with the arrays of the pytree by number in float16."""
    path = Path(folder) / f"{name}.npz"
    leaves = jax.tree.leaves(expert)
    arrays: dict[str, Any] = {str(n): np.asarray(leaf, np.float16) for n, leaf in enumerate(leaves)}
    np.savez_compressed(path, **arrays)
    return path


def train_expert(name: str, seed: int = 0, progress: bool = True) -> Any:
    """Trains a density model from scratch on the 9,000 training digits. Takes about a minute on two cores."""
    train, _ = _known(name)
    return train(mnist().x_train, key=jax.random.key(seed), progress=progress)


def _known(name: str) -> tuple[Callable[..., Any], Any]:
    if name not in _EXPERTS:
        raise SettingError(explain_error(f"zoo: there is no expert {name!r}.", need=", ".join(map(repr, _EXPERTS))))
    return _EXPERTS[name]
