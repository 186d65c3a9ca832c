"""Checks of settings and keys, with the errors that they raise. `method` is the name that the error starts with."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxplain._errors import MissingKeyError, SettingError, explain_error

DEFAULT_CHUNK = 1  # `vmap` over examples already provides enough parallelism: see docs/internals.md, "Chunks"


def require_callable(method: str, f: object) -> None:
    if not callable(f):
        raise SettingError(
            explain_error(
                f"{method}: its first argument must be a function.",
                got=type(f).__name__,
                fix=f"explain = jx.{method}(score, …); attribution = explain(x, *args)",
            )
        )


def positive_int(method: str, name: str, value: int, *, minimum: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be a positive Python integer.",
                got=repr(value),
                need=f"at least {minimum}",
                why="it determines the shape of the compiled program",
                fix=f"{name}=50",
            )
        )
    return value


def chunk_of(method: str, chunk_size: int | None) -> int:
    return positive_int(method, "chunk_size", DEFAULT_CHUNK if chunk_size is None else chunk_size)


def one_of(method: str, name: str, value: object, options: Iterable[object]) -> None:
    options = tuple(options)
    if value not in options:
        raise SettingError(
            explain_error(f"{method}: unknown `{name}`.", got=repr(value), need=", ".join(map(repr, options)))
        )


def not_negative(method: str, name: str, value: ArrayLike) -> None:
    """Refuses a negative or NaN setting. Traced values pass, because they are unknown."""
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must not be negative or NaN.",
                got=f"{np.min(np.asarray(value)):g}",
                need="at least 0",
            )
        )


_EXPLAIN_ONE = "explain(x, *args, key=jax.random.key(0))"
_EXPLAIN_MANY = "a batch: jax.vmap(explain)(xs, labels, key=jax.random.split(key, len(xs)))"


def one_key(method: str, key: Any, *, fix: tuple[str, ...] = (_EXPLAIN_ONE, _EXPLAIN_MANY)) -> jax.Array:
    """Returns `key` as a typed key; an error with `fix` unless it is exactly one random key, typed or raw."""
    if key is None:
        raise MissingKeyError(explain_error(f"{method}: needs a random key.", fix=fix))
    dtype = getattr(key, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = dtype == jnp.uint32
    if not (is_typed and key.shape == ()) and not (is_raw and key.shape == (2,)):
        raise MissingKeyError(
            explain_error(
                f"{method}: `key` must be one random key.",
                got=type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}",
                why="under vmap, keyword arguments are mapped over their leading axis, too",
                fix=fix,
            )
        )
    return jax.random.wrap_key_data(key) if is_raw else key
