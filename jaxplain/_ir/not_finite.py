"""Where a program stops being finite. Only for messages: it runs a program equation by equation, outside of `jit`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import _compat


def is_finite(value: Any) -> bool:
    """Whether a value is not a float, or has only finite elements; True if it is traced or lives on other hosts."""
    if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return True
    return not getattr(value, "is_fully_addressable", True) or bool(np.isfinite(np.asarray(value)).all())


def source_of_nan(closed: Any, inputs: Sequence[Any]) -> str | None:
    """The user's line of the first equation that makes NaN of other numbers, or else infinity of finite ones."""
    found: dict[Any, str] = {}

    def run(equation: Any, inputs: list[Any], around: Any = None) -> list[Any]:
        around = equation if around is None else around
        if equation.primitive is _compat.JIT:
            body = next(_compat.closed_bodies(equation))
            return _compat.evaluate(body, inputs, partial(run, around=around))
        outputs = _compat.bind(equation, inputs)
        for is_bad in (_has_nan, _has_infinity):
            if any(map(is_bad, outputs)) and not any(map(is_bad, inputs)):
                # Without the scope, which is that of the derivative.
                found.setdefault(is_bad, _compat.source_line(around, equation).rpartition(" · ")[2])
        return outputs

    _compat.evaluate(closed, inputs, run)
    return found.get(_has_nan, found.get(_has_infinity))


def _has_nan(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact) and bool(np.isnan(np.asarray(value)).any())


def _has_infinity(value: Any) -> bool:
    return not is_finite(value)
