"""Training from scratch: AdamW, a one-cycle schedule, digits that no two epochs show alike."""

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
    """Shift every image by its own random number of pixels, filling with zeros.

    Args:
        images: ``(n, height, width, channels)``.
        key: a JAX random key.
        max_shift: the largest shift, in pixels, up, down, left or right.

    Returns:
        The shifted images, same shape and dtype.
    """
    _, *shape = images.shape
    border = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * max_shift + 1, jnp.int32)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*offset, jnp.int32(0)), shape)

    return jax.vmap(crop)(jnp.pad(images, border), offsets)


def shifted(images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An epoch of digits: all of them, in random order, each shifted at random."""
    order_key, shift_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))
    return shift(images[order], shift_key), labels[order]


def scenes(images: jax.Array, labels: jax.Array, key: jax.Array, n: int | None = None) -> tuple[jax.Array, jax.Array]:
    """An epoch of cluttered MNIST: `n` new scenes of one digit, by default as many as there are digits to make them of."""
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
    """Minimize the cross-entropy of ``apply`` and return the trained parameters.

    Args:
        params: the parameters to start from.
        apply: ``(params, images) -> logits``.
        images: ``(n, 28, 28, 1)``, the digits.
        labels: ``(n,)``, integers.
        examples: ``(images, labels, key) -> (inputs, labels)``, what one epoch trains on, n of each.
        epochs: how many of them.
        learning_rate: the highest learning rate of the one-cycle schedule.
        key: decides the examples.
        progress: the name to show on a progress bar; no bar if ``None``.
    """
    batches = len(images) // BATCH_SIZE
    # A warm-up of a fifth, then a cosine to zero.
    schedule = optax.cosine_onecycle_schedule(epochs * batches, learning_rate, 0.2)
    optimizer = optax.adamw(schedule, weight_decay=1e-4)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    # The images are arguments rather than constants: XLA need not fold them.
    @jax.jit
    def epoch(carry: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        x, y = (
            part[: batches * BATCH_SIZE].reshape(batches, BATCH_SIZE, *part.shape[1:]) for part in examples(x, y, key)
        )

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            # Staged, so that the kernels of `_cpu.rewrites` run it.
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
