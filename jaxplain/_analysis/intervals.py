"""Intervals of values, known when a program is staged. They tell what is nonnegative, and which factors are gates.

For example, `1 - logistic(x @ w)` lies in [0, 1] for all x and w. The contents of arrays are never used. An interval
passes into the bodies of loops and branches, so that gates that are made before a loop are gates inside it:

    g = logistic(x)                          g in [0, 1]
    scan[ body: (h, g_t, u_t) -> g_t * h + u_t ] 0 g u
                visit 1: h in [0, 0]         the carry becomes [0, 0] + u = (-inf, inf)
                visit 2: h in (-inf, inf)    nothing changes: g_t in [0, 1] is a gate
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._ir.dataflow import Domain, forward
from jaxplain._ir.graph import Equation, Graph, Value, equations_inside, flatten
from jaxplain._ir.primitives import ANY, NONNEGATIVE, Interval, Trait

Intervals: TypeAlias = dict[Value, Interval]
_LANDMARKS = (-math.inf, -1.0, 0.0, 1.0, math.inf)  # where the interval of a loop's carry stops growing


def intervals(graph: Graph, inputs: Sequence[Interval] = ()) -> Intervals:
    """The interval of each value of a graph and of its bodies, from those of its inputs."""
    graphs = [graph, *(body for equation in equations_inside(graph) for body in equation.bodies)]
    constants = {value: constant for g in graphs for value, constant in g.constants.items()}
    opened = cache(lambda equation: flatten(next(_compat.closed_bodies(equation.origin))))

    def transfer(equation: Equation, before: list[Interval]) -> list[Interval]:
        if equation.has(Trait.CUSTOM):
            body = opened(equation)
            inside = intervals(body, before)
            return [inside[value] for value in body.outputs]
        return [_of(equation, before)] * len(equation.outputs)

    domain: Domain[Interval] = Domain(
        unknown=lambda value: _of_constant(constants[value]) if value in constants else ANY,
        transfer=transfer,
        join=lambda a, b: (min(a[0], b[0]), max(a[1], b[1])),
        widen=_widened,
    )
    return forward(graph, inputs or [ANY] * len(graph.inputs), domain)


def _of(equation: Equation, inputs: list[Interval]) -> Interval:
    rule = equation.row.interval
    low, high = ANY if rule is None else rule(inputs)
    if equation.op is lax.integer_pow_p and equation.params["y"] % 2 == 0:
        low, high = NONNEGATIVE
    fill = equation.params.get("fill_value") if equation.op is lax.gather_p else None
    if fill is not None:  # what is read outside of the operand
        low, high = min(low, float(fill)), max(high, float(fill))
    # ∞ − ∞ is anything; NaN as a value (`where(n > 0, v, nan)`) stands for a missing one.
    return ANY if math.isnan(low) != math.isnan(high) else (low, high)


def _widened(old: Interval, new: Interval) -> Interval:
    """The interval of a carry that held `old` before an iteration and `new` after it.

    A bound that moved goes on to the next landmark, so that a counter, which grows without end, is soon [0, inf).
    """
    if any(map(math.isnan, (*old, *new))):
        return ANY
    low = old[0] if new[0] >= old[0] else max(mark for mark in _LANDMARKS if mark <= new[0])
    high = old[1] if new[1] <= old[1] else min(mark for mark in _LANDMARKS if mark >= new[1])
    return low, high


def _of_constant(constant: Any) -> Interval:
    # Only literals, because an array may be a traced weight.
    if isinstance(constant, jax.Array) or np.ndim(constant) or not np.isrealobj(constant):
        return ANY
    return float(constant), float(constant)
