"""Small functions that several tests share."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import JaxplainError


@contextlib.contextmanager
def promoting() -> Iterator[None]:
    """Types and ranks are promoted, for the code of other libraries, which relies on it. Also a decorator."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@contextlib.contextmanager
def as_users_run() -> Iterator[None]:
    """JAX's defaults: no float64, and types and ranks promoted."""
    with jax.enable_x64(False), promoting():
        yield


def relative(got: Any, want: Any) -> float:
    """Relative L2 distance over all leaves, in float64."""
    a = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(got)])
    b = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(want)])
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


def relu_net(key: jax.Array, sizes: tuple[int, ...], bias: float = 0.0, act: Any = jax.nn.relu) -> Any:
    """f(x) -> scalar: a random ReLU (or other) network in float64."""
    keys = jax.random.split(key, 2 * len(sizes))
    layers = [
        (
            jax.random.normal(keys[2 * i], (m, n), jnp.float64) * jnp.sqrt(2 / m),
            bias * jax.random.normal(keys[2 * i + 1], (n,), jnp.float64),
        )
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    ]

    def f(x: jax.Array) -> jax.Array:
        for w, b in layers[:-1]:
            x = act(x @ w + b)
        w, b = layers[-1]
        return (x @ w + b)[0]

    return f


def text(error: BaseException | Any) -> str:
    """The text of an error raised on purpose; every such error is a JaxplainError."""
    value = getattr(error, "value", error)
    assert isinstance(value, JaxplainError), type(value)
    return str(value)
