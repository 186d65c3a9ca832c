"""Checks of settings and keys, with the errors that they raise. `method` is the name that the error starts with.

A setting of one name means the same in every function, so the checks that need nothing else are in one table, SETTINGS,
and `@checked` applies them. For example, `n_samples` is a count everywhere: `jx.smoothgrad(f, n_samples=2.5)` and
`metrics.infidelity(f, n_samples="a")` raise the same error, and NumPy's integers become Python's.
"""

import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

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


Check = Callable[[str, str, Any], Any]  # (method, name, value) -> the value to use


def positive_int(method: str, name: str, value: Any, *, minimum: int = 1) -> int:
    """A Python integer from an integer of Python, NumPy or JAX."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:  # other types, and traced values
        number = None
    if number is None or number < minimum:
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be a{'n' if minimum < 1 else ' positive'} Python integer.",
                got=_short(value),
                need=f"at least {minimum}" if minimum > -sys.maxsize else None,
                why="it determines the shape of the compiled program",
                fix=f"{name}={max(minimum, 5)}" if minimum > 0 else (),
            )
        )
    return number


def count(minimum: int = 1) -> Check:
    """A check for integers."""
    return functools.partial(positive_int, minimum=minimum)


def flag(method: str, name: str, value: Any) -> bool:
    """A Python bool, from one of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        is_traced = isinstance(value, jax.core.Tracer)
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be True or False.",
                got=_short(value),
                why="it selects the program that is compiled, so it cannot be traced" if is_traced else None,
                fix=f"{name}=True",
            )
        )
    return bool(value)


def number(low: float = 0.0, high: float = math.inf, *, traced: bool = True) -> Check:
    """A check for finite real numbers within bounds. Traced ones are not compared, or refused."""

    def check(method: str, name: str, value: Any) -> Any:
        is_number = not isinstance(value, bool | np.bool_ | str | bytes) and np.ndim(value) == 0
        dtype = getattr(value, "dtype", None) or np.result_type(type(value) if is_number else object)
        is_number = is_number and (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
        is_traced = isinstance(value, jax.core.Tracer)
        is_good = traced if is_traced else is_number and math.isfinite(value) and low <= value <= high
        if not (is_number and is_good):
            bounds = {(0.0, math.inf): "at least 0", (-math.inf, math.inf): "a finite number"}
            raise SettingError(
                explain_error(
                    f"{method}: `{name}` must be a finite real number"
                    + (", and must not be negative." if low == 0 else "."),
                    got=_short(value),
                    need=bounds.get((low, high), f"between {low:g} and {high:g}"),
                )
            )
        return value if is_traced else float(value)

    return check


def choice(*options: object) -> Check:
    """A check for one of several words."""

    def check(method: str, name: str, value: Any) -> Any:
        one_of(method, name, value, options)
        return value

    return check


def instance(*types: type, fix: str = "") -> Check:
    """A check for objects of some types."""

    def check(method: str, name: str, value: Any) -> Any:
        if not isinstance(value, types):
            need = " or ".join(t.__name__ for t in types)
            raise SettingError(
                explain_error(f"{method}: `{name}` has a wrong type.", got=_short(value), need=need, fix=fix or ())
            )
        return value

    return check


def started(method: str, name: str, value: Any) -> Any:
    """A check for the relevance that a propagation starts with."""
    if (isinstance(value, str) and value == "score") or callable(value):
        return value
    return number(-math.inf)(method, name, value)


def numeric(method: str, name: str, value: Any) -> Any:
    """A number or an array of finite real numbers."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except (TypeError, ValueError):
            dtype = np.dtype(object)
    is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if is_real and not isinstance(value, jax.core.Tracer):
        is_real = np.size(value) > 0 and bool(np.isfinite(np.asarray(value, np.float64)).all())
    if not is_real:
        raise SettingError(explain_error(f"{method}: `{name}` must hold finite real numbers.", got=_short(value)))
    return value


def numbers(method: str, name: str, value: Any) -> Any:
    """A check for a sequence of finite real numbers."""
    is_array = isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer) and value.ndim == 1
    if not (is_array or isinstance(value, list | tuple)) or not len(value):
        raise SettingError(explain_error(f"{method}: `{name}` must be a sequence of numbers.", got=_short(value)))
    return [number(-math.inf, traced=False)(method, f"{name}[{i}]", item) for i, item in enumerate(value)]


def axes_of(n: int | None = None) -> Check:
    """A check for the axes of an array: `n` of them, or one or more."""

    def check(method: str, name: str, value: Any) -> tuple[int, ...]:
        is_list = isinstance(value, tuple | list) and len(value) == (n or len(value) or 1)
        if not is_list or any(isinstance(axis, bool) or not isinstance(axis, int | np.integer) for axis in value):
            raise SettingError(
                explain_error(f"{method}: `{name}` must be a tuple of axes.", got=_short(value), fix=f"{name}=(0, 1)")
            )
        return tuple(map(int, value))

    return check


def _short(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return f"a traced value, {value.aval.str_short()}"
    text = repr(value)
    return text if len(text) <= 80 else f"{type(value).__name__} {text[:60]}…"


SETTINGS: dict[str, Check] = {
    **dict.fromkeys(
        ("n_steps", "n_samples", "max_steps", "n_points", "n_bisections", "n_starts", "batch_size"), count()
    ),
    **dict.fromkeys(("n_groups", "chunk_size", "subset_size"), count()),
    **dict.fromkeys(("relu", "share", "complete", "antithetic", "relative", "center", "normalize", "absolute"), flag),
    **dict.fromkeys(("average", "absorb_bias", "allow_random"), flag),
    **dict.fromkeys(("epsilon", "stabilizer", "atol", "rtol", "eps_min", "gamma", "alpha", "beta"), number()),
    "tol": number(),
    "until": number(0.0, 1.0),
    "start": started,
    "on_missing": choice("error", "gradient"),
    "n_examples": count(),
    "axes": axes_of(),
    "channel_axis": count(-sys.maxsize),
    "sigma": number(traced=False),
    "shares": numbers,
    "pooling": choice("winner", "sum"),
    **dict.fromkeys(("low", "high"), numeric),
}

P = ParamSpec("P")
R = TypeVar("R")


def checked(**checks: Check | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that checks settings by SETTINGS, or by a check given here; None leaves a setting to the function."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        parameters = signature.parameters
        table = {name: checks.get(name, SETTINGS.get(name)) for name in parameters}
        method = _label(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # raises it
            for name, value in bound.arguments.items():
                is_absent = value is None and parameters[name].default is None
                if not is_absent and (check := table[name]) is not None:
                    bound.arguments[name] = check(method, name, value)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def _label(function: Callable[..., Any]) -> str:
    """The public name of a function, for errors: "smoothgrad", "metrics.infidelity", "rules.gamma"."""
    parts = [part for part in function.__module__.split(".")[1:] if not part.startswith("_") and part != "methods"]
    return ".".join([*parts, function.__name__])


def chunk_of(method: str, chunk_size: int | None) -> int:
    return positive_int(method, "chunk_size", DEFAULT_CHUNK if chunk_size is None else chunk_size)


def one_of(method: str, name: str, value: object, options: Iterable[object]) -> None:
    options = tuple(options)
    if not any(isinstance(value, type(option)) and value == option for option in options):
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
