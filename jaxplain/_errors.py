"""All errors that the library raises on purpose, its warnings, and the format of their texts.

A message says, in this order: what is wrong, where, what was given, what is needed, why, and a fix to paste. The
first line is understandable on its own.
"""

import sys
import warnings
from typing import Any


class JaxplainError(Exception):
    """Base of every error that jaxplain raises on purpose."""


class ScoreError(JaxplainError, TypeError):
    """The explained function does not return one real number per example."""


class InputError(JaxplainError, TypeError):
    """The explained argument cannot be explained: wrong dtype, wrong position, no leaves."""


class StructureError(JaxplainError, ValueError):
    """A baseline, a noise level or a reference does not have the structure of the explained argument."""


class SettingError(JaxplainError, ValueError):
    """A setting is invalid."""


class LabelError(JaxplainError, ValueError):
    """A class label does not exist in the model's output."""


class MissingKeyError(JaxplainError, TypeError):
    """A stochastic method was called without a random key, or with something that is not one key."""


class ModelModeError(JaxplainError, RuntimeError):
    """The model is in training mode, draws random numbers, or mixes the examples of a batch."""


class TransformError(JaxplainError, TypeError):
    """A JAX transform was applied where it cannot work."""


class UnknownNodeError(JaxplainError, NotImplementedError):
    """The score contains operations for which no propagation rule can be chosen."""


class LayerError(JaxplainError, LookupError):
    """No layer or several layers match the request, or the layer cannot be used this way."""


class UnexplainedChangeError(JaxplainError, ValueError):
    """The score changes in a way that has no derivative: by rounding, an index or, from a reference, another branch."""


class NonFiniteError(JaxplainError, FloatingPointError):
    """An attribution, or the output of a model that is checked, is not finite."""


class DataError(JaxplainError, OSError):
    """Data shipped with the package is missing or damaged."""


class JaxplainWarning(UserWarning):
    """A result that may not be what it is taken for. Given once for each line that calls, and never under `jit`.

    `warnings.simplefilter("ignore", jx.JaxplainWarning)` silences all, "error" makes errors of them.
    """


# What makes a derivative of a finite score NaN or infinite, and how to write the formula instead.
WHY_NOT_FINITE = (
    "a norm and a square root at 0 have an infinite slope and a division by 0 none, "
    "also in the branch that jnp.where does not choose"
)
SAFE_FORMULAS = (
    "a safe operand in the branch that is not chosen: jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1.0)), 0.0)",
    "a small number inside of the root or the quotient: jnp.sqrt(jnp.sum(v**2) + 1e-12)",
)


def explain_error(
    what: str,
    *,
    where: str | None = None,
    got: object = None,
    need: object = None,
    why: str | None = None,
    fix: str | tuple[str, ...] = (),
) -> str:
    """The text of an error: `what` on the first line, then the fields that were given."""
    lines = [what]
    for name, value in (("where", where), ("got", got), ("need", need), ("why", why)):
        if value is not None:
            lines.append(f"  {name:<5} {value}")
    fixes = (fix,) if isinstance(fix, str) else fix
    for number, text in enumerate(fixes, start=1):
        label = "fix" if len(fixes) == 1 else f"fix {number}"
        lines.append(f"  {label:<5} {text}")
    return "\n".join(lines)


_WARNED: set[tuple[str, int, str]] = set()


def warn(what: str, **fields: Any) -> None:
    """A `JaxplainWarning` with the text of `explain_error`, at the user's line; once for each line and `what`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("jaxplain", "jax"):
        frame = frame.f_back
    site = (frame.f_code.co_filename, frame.f_lineno, what)
    if site not in _WARNED:
        _WARNED.add(site)
        warnings.warn_explicit(explain_error(what, **fields), JaxplainWarning, site[0], site[1])
