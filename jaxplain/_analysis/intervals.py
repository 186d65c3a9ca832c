"""Intervals of values, known when a program is staged. They tell what is nonnegative, and which factors are gates.

For example, `1 - logistic(x @ w)` lies in [0, 1] for all x and w. The contents of arrays are never used.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._ir.graph import Equation, Graph, Value, flatten
from jaxplain._ir.primitives import ANY, NONNEGATIVE, Interval, Trait


class Intervals:
    """The interval of each value of a graph."""

    def __init__(self, graph: Graph, inputs: Sequence[Interval] = ()):
        self._found: dict[Value, Interval] = dict.fromkeys(graph.inputs, ANY)
        self._found.update(zip(graph.inputs, inputs, strict=False))
        for value, constant in graph.constants.items():
            self._found[value] = _of_constant(constant)
        for equation in graph.equations:
            self._found.update(zip(equation.outputs, self._of(equation), strict=True))

    def __getitem__(self, value: Value) -> Interval:
        return self._found.get(value, ANY)

    def _of(self, equation: Equation) -> list[Interval]:
        inputs = [self[v] for v in equation.inputs]
        if equation.has(Trait.CUSTOM):
            body = flatten(next(_compat.closed_bodies(equation.origin)))
            inside = Intervals(body, inputs)
            return [inside[value] for value in body.outputs]
        rule = equation.row.interval
        interval = ANY if rule is None else rule(inputs)
        if equation.op is lax.integer_pow_p and equation.params["y"] % 2 == 0:
            interval = NONNEGATIVE
        fill = equation.params.get("fill_value") if equation.op is lax.gather_p else None
        if fill is not None and interval is not ANY:  # what is read outside of the operand
            interval = min(interval[0], float(fill)), max(interval[1], float(fill))
        return [interval] * len(equation.outputs)


def _of_constant(constant: Any) -> Interval:
    # Only literals, because an array may be a traced weight.
    if isinstance(constant, jax.Array) or np.ndim(constant) or not np.isrealobj(constant):
        return ANY
    return float(constant), float(constant)
