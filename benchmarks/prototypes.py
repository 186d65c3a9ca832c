"""Ten prototypes by one compiled loop, next to a hand-written loop in Python over a compiled step."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxplain as jx
from jaxplain import datasets, prototypes, zoo

STEPS = {"mlp": 600, "cnn_maxpool": 60}
ROUNDS = 15


def measure() -> list[dict]:
    """The objective of chapter 1.1: the log-probability of each class, pulled to the class mean."""
    digits = datasets.mnist()
    means = jnp.stack([digits.x_train[digits.y_train == c].mean(0) for c in range(10)])
    return [_measure(name, means, n_steps) for name, n_steps in STEPS.items()]


def _measure(name: str, means: jax.Array, n_steps: int) -> dict:
    score, optimizer, classes = jx.logit(zoo.load(name), of="log_prob"), optax.adam(0.01), jnp.arange(10)
    maximize = jx.activation_maximization(
        score,
        penalties={"l2": prototypes.l2(0.1, center=lambda label: means[label])},
        optimizer=optimizer,
        n_steps=n_steps,
    )
    compiled = jax.jit(jax.vmap(maximize, in_axes=(None, 0)))
    # Not a blank image, because all its pixels are tied in max-pooling, and rounding would decide between them.
    start = 0.1 * jax.random.uniform(jax.random.key(0), (28, 28, 1))

    def ours() -> jax.Array:
        return compiled(start, classes).x.block_until_ready()

    objective = jax.vmap(lambda x, label: score(x, label) - 0.05 * jnp.sum(jnp.square(x - means[label])))

    @jax.jit
    def step(x: jax.Array, state: optax.OptState) -> tuple[jax.Array, optax.OptState]:
        slope = jax.grad(lambda x: -jnp.sum(objective(x, classes)))(x)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(x, updates), state

    def by_hand() -> jax.Array:
        x = jnp.broadcast_to(start, means.shape)
        state = optimizer.init(x)
        for _ in range(n_steps):
            x, state = step(x, state)
        return x.block_until_ready()

    difference = float(jnp.abs(ours() - by_hand()).max())  # and both are compiled now
    times = np.array([(_seconds(ours), _seconds(by_hand)) for _ in range(ROUNDS)])
    ratios = times[:, 1] / times[:, 0]
    return {
        "network": name,
        "steps": n_steps,
        "ours_steps_per_second": n_steps / float(np.median(times[:, 0])),
        "by_hand_steps_per_second": n_steps / float(np.median(times[:, 1])),
        "speed": {"median": float(np.median(ratios)), "quartiles": np.percentile(ratios, [25, 75]).tolist()},
        "largest_difference": difference,
    }


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
