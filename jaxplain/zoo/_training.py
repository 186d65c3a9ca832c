"""Training from scratch with AdamW, a one-cycle schedule, and different examples in each epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxplain._ir.program import Program
from jaxplain.datasets import cluttered_mnist

BATCH_SIZE = 100


@partial(jax.jit, static_argnames="max_shift")
def shift(images: jax.Array, key: jax.Array, max_shift: int = 2) -> jax.Array:
    """Shifts every image by a random number of pixels and fills with zeros.

    Arguments:
        images: Array (n, height, width, channels).
        key: One random key.
        max_shift: Largest shift, in pixels, up, down, left or right.

    Returns:
        The shifted images, with the same shape and dtype.
    """
    _, *shape = images.shape
    border = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * max_shift + 1, jnp.int32)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*offset, jnp.int32(0)), shape)

    return jax.vmap(crop)(jnp.pad(images, border), offsets)


def shifted(images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The examples of an epoch: all digits in random order, each shifted at random."""
    order_key, shift_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))
    return shift(images[order], shift_key), labels[order]


def scenes(images: jax.Array, labels: jax.Array, key: jax.Array, n: int | None = None) -> tuple[jax.Array, jax.Array]:
    """The examples of an epoch: `n` new scenes with one digit each, by default as many as there are digits."""
    keys = jax.random.split(key, len(images) if n is None else n)
    scene = jax.vmap(lambda key: cluttered_mnist(key, images, labels))(keys)
    return scene.image, scene.labels[:, 0]


def fit(
    params: Any,
    apply: Callable[[Any, jax.Array], jax.Array],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    examples: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    epochs: int,
    learning_rate: float,
    key: jax.Array,
    progress: str | None = None,
) -> Any:
    """Minimizes the cross-entropy of `apply` and returns the trained parameters.

    Arguments:
        params: Initial parameters.
        apply: Function `(params, images) -> logits`.
        images: Digits, (n, 28, 28, 1).
        labels: Integer labels, (n,).
        examples: Function `(images, labels, key) -> (inputs, labels)` that makes the n examples of an epoch.
        epochs: Number of epochs.
        learning_rate: Highest learning rate of the one-cycle schedule.
        key: One random key, for the examples.
        progress: Name shown on a progress bar; `None` for no bar.
    """
    batches = len(images) // BATCH_SIZE
    # A warm-up of a fifth, then a cosine to zero.
    schedule = optax.cosine_onecycle_schedule(epochs * batches, learning_rate, 0.2)
    optimizer = optax.adamw(schedule, weight_decay=1e-4)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    # The images are arguments rather than constants, so that XLA does not fold them.
    @jax.jit
    def epoch(carry: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        x, y = (
            part[: batches * BATCH_SIZE].reshape(batches, BATCH_SIZE, *part.shape[1:]) for part in examples(x, y, key)
        )

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            # Staged, so that the rewrites for CPUs apply.
            value, grads = Program("zoo.train", jax.value_and_grad(loss), params, *batch)(params, *batch)
            with jax.numpy_dtype_promotion("standard"):  # because the schedules of Optax mix integers and floats
                updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        carry, losses = jax.lax.scan(step, carry, (x, y))
        return carry, losses.mean()

    carry = params, optimizer.init(params)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    with tqdm(total=epochs, desc=progress, unit="epoch", disable=progress is None) as bar:
        for epoch_key in jax.random.split(key, epochs):
            carry, mean_loss = epoch(carry, epoch_key, x, y)
            bar.set_postfix(loss=f"{mean_loss:.4f}")
            bar.update()
    return carry[0]
