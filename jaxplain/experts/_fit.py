"""Training of experts: shuffled minibatches, one compiled epoch at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from tqdm import tqdm

from jaxplain import _checks
from jaxplain._errors import (
    NonFiniteError,
    SettingError,
    StructureError,
    TransformError,
    explain_error,
)


def examples_of(name: str, images: ArrayLike, binary_range: bool = True) -> jax.Array:
    """`images` as an array of training examples: floats (n, …), finite and, with `binary_range`, in [0, 1]."""
    images = jnp.asarray(images)
    if isinstance(images, jax.core.Tracer):
        raise TransformError(
            explain_error(
                f"{name}: cannot be traced.",
                got="images inside of jit, vmap or grad",
                fix="train outside; the trained expert is a pytree that can be passed to jit, vmap and grad",
            )
        )
    if images.ndim < 2 or images.size == 0 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise StructureError(
            explain_error(
                f"{name}: `images` must be a batch of real numbers, (n, …).",
                got=f"{images.dtype}, shape {images.shape}",
            )
        )
    low, high = float(jnp.min(images)), float(jnp.max(images))
    if not np.isfinite(low + high):
        raise NonFiniteError(explain_error(f"{name}: `images` contains NaN or infinity."))
    if binary_range and (low < 0 or high > 1):
        raise SettingError(
            explain_error(
                f"{name}: `images` must be in [0, 1].",
                got=f"values from {low:.4g} to {high:.4g}",
                why="pixels are probabilities of ink",
                fix="images / 255",
            )
        )
    return images


def one_key(name: str, key: Any) -> jax.Array:
    """`key`, which must be one random key."""
    return _checks.one_key(name, key, fix=("key=jax.random.key(0)",))


def minimizing(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array], optimizer: optax.GradientTransformation
) -> Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]:
    """The `update` of `fit` that minimizes `loss(params, batch, key)`. Its carry is (params, optimizer state)."""

    def update(carry: Any, batch: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # because the schedules of Optax mix integers and floats
            updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    return update


def fit(
    name: str,
    update: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    carry: Any,
    examples: jax.Array,
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
    progress: bool,
) -> Any:
    """Returns `carry` after `epochs` of `update(carry, batch, key) -> (carry, objective)`."""
    batch_size = min(batch_size, len(examples))
    batches = len(examples) // batch_size

    @jax.jit
    def epoch(carry: Any, key: jax.Array, examples: jax.Array) -> tuple[Any, jax.Array]:
        order_key, step_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(examples))[: batches * batch_size]

        def step(carry: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            rows, key = part
            return update(carry, examples[rows], key)

        parts = order.reshape(batches, batch_size), jax.random.split(step_key, batches)
        carry, values = lax.scan(step, carry, parts)
        return carry, jnp.mean(values)

    with tqdm(total=epochs, desc=name, unit="epoch", disable=not progress) as bar:
        for number, epoch_key in enumerate(jax.random.split(key, epochs)):
            carry, value = epoch(carry, epoch_key, examples)
            if not jnp.isfinite(value):
                raise NonFiniteError(
                    explain_error(
                        f"{name}: training diverged.",
                        where=f"epoch {number} of {epochs}",
                        got=f"mean objective {value}",
                        fix="use a smaller `learning_rate`",
                    )
                )
            bar.set_postfix(objective=f"{value:.4f}")
            bar.update()
    return carry
