"""The gain of an activation: what its formula computes, and not how it is written.

A formula whose operands are one variable and literals can be evaluated when a program is staged. Its gain is

- its slope far from 0, where it is straight there: 1 for relu, GELU, SiLU, softplus; 2 for h + |h|; −1 for relu(−h);
- else its largest slope: 1 for tanh and relu6, ¼ for the sigmoid, −¼ for 1 − sigmoid;
- else, where slopes have no bound (exp, squares), its slope at 0 or its change from 0 to 1.

It scales with the function and with its argument, so that c·tanh(z) has the gain c whether c is written inside or
outside of the formula. Its sign tells an increasing function from a reflected one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._ir.graph import Equation, Value, flatten
from jaxplain._ir.interpret import run_equation
from jaxplain._ir.primitives import Trait

FAR = 60.0  # where activations are straight, and exp(FAR)² is still a number
ZERO = 1e-12  # beside the kink of formulas with |z|, such as logaddexp
GRID = np.concatenate([[-FAR, -FAR / 2], np.linspace(-10, 10, 401), [FAR / 2, FAR]])
GRID[GRID == 0] = ZERO
MAX_KNOWN = 1024

_known: dict[str, float | None] = {}


def gain(root: Value, output: Value, equations: Sequence[Equation], literals: Mapping[Value, float]) -> float | None:
    """The gain of `output` as a function of `root`, or None if it has other operands than literals.

    Args:
        equations: In program order.
        literals: Values that are numbers known when the program is staged.
    """
    text: list[str] = []

    def written(equation: Equation, operands: Sequence[Any]) -> str:
        text.append(f"{equation.primitive}{sorted(equation.params.items())}{operands}")
        return f"v{len(text)}"

    end = _followed(equations, {root: "x"}, literals, written).get(output)
    if end is None:
        return None
    key = "; ".join((*text, str(end)))
    if key not in _known:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            grid = jnp.asarray(GRID)
            curve = jax.jvp(lambda z: _followed(equations, {root: z}, literals, _run)[output], (grid,), (grid**0,))
        _known[key] = _gain(*map(np.asarray, curve))
    return _known[key]


def _followed(
    equations: Sequence[Equation],
    values: Mapping[Value, Any],
    literals: Mapping[Value, float],
    apply: Callable[[Equation, Sequence[Any]], Any],
) -> dict[Value, Any]:
    """Values of elementwise equations as `apply` makes them; what needs unknown operands stays unknown."""
    known = {**literals, **values}
    for equation in equations:
        if not all(value in known for value in equation.inputs):
            continue
        operands = [known[value] for value in equation.inputs]
        if equation.has(Trait.CUSTOM):
            body = flatten(next(_compat.closed_bodies(equation.origin)))
            numbers = {v: float(c) for v, c in body.constants.items() if np.ndim(c) == 0 and not _is_hidden(c)}
            inside = _followed(body.equations, dict(zip(body.inputs, operands, strict=True)), numbers, apply)
            if body.outputs[0] in inside:
                known[equation.outputs[0]] = inside[body.outputs[0]]
        elif _rounds(equation):
            continue
        elif equation.has(Trait.CAST) or equation.op is lax.broadcast_in_dim_p:  # of a number
            known[equation.outputs[0]] = operands[0]
        elif equation.has(Trait.ELEMENTWISE):
            known[equation.outputs[0]] = apply(equation, operands)
    return known


def _run(equation: Equation, operands: Sequence[Any]) -> jax.Array:
    types = [bool if v.aval.dtype == bool else jnp.float64 for v in equation.inputs]
    arrays = [jnp.asarray(operand).astype(t) for operand, t in zip(operands, types, strict=True)]
    return run_equation(equation, jnp.broadcast_arrays(*arrays))[0]


def _rounds(equation: Equation) -> bool:
    """Whether a cast makes integers of floats, which the values of the grid would not show."""
    before, after = equation.inputs[0].aval.dtype, equation.outputs[0].aval.dtype
    return equation.has(Trait.CAST) and jnp.issubdtype(before, jnp.inexact) and not jnp.issubdtype(after, jnp.inexact)


def _is_hidden(constant: Any) -> bool:
    return isinstance(constant, jax.Array)  # may be a traced weight


def _gain(values: np.ndarray, slopes: np.ndarray) -> float | None:
    def straight(far: int, near: int) -> float:
        return float(slopes[far]) if np.isclose(slopes[far], slopes[near], rtol=1e-6, atol=1e-9) else 0.0

    left, right = straight(0, 1), straight(-1, -2)
    if max(abs(left), abs(right)) > 1e-6:
        return right if abs(right) >= abs(left) else left
    inner = np.nan_to_num(slopes[2:-2], nan=0.0, posinf=0.0, neginf=0.0)
    steepest = int(np.argmax(np.abs(inner)))
    if 0 < steepest < len(inner) - 1:
        # Of an even function, the rising side counts.
        rising = inner.max() >= -inner.min() * (1 - 1e-9)
        return float(inner.max() if rising else inner.min())
    zero, one = np.searchsorted(GRID, ZERO), np.searchsorted(GRID, 1.0)
    return next(
        (float(s) for s in (slopes[zero], values[one] - values[zero]) if np.isfinite(s) and abs(s) > 1e-6), None
    )
