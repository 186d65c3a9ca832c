"""Which values carry a derivative from the explained input to the score."""

import enum
from collections.abc import Iterable

import jax.numpy as jnp

from jaxplain import _compat
from jaxplain.graph import tables
from jaxplain.graph.flat import Equation, Graph, Value


class Activity(enum.IntEnum):
    """What a value has to do with the explained input; the larger one wins where several meet."""

    CONSTANT = 0
    STOPPED = 1  # changes with the input through `stop_gradient` alone: its author says that it carries nothing
    DEPENDENT = 2  # changes with the input but has no derivative: comparisons, indices, argmax
    ACTIVE = 3


CONSTANT, STOPPED, DEPENDENT, ACTIVE = Activity


def activities(graph: Graph, inputs: Iterable[Activity]) -> dict[Value, Activity]:
    """The activity of every value of a graph and of its bodies."""
    found: dict[Value, Activity] = {}
    _visit(graph, inputs, found)
    return found


def _visit(graph: Graph, inputs: Iterable[Activity], found: dict[Value, Activity]) -> list[Activity]:
    found.update(dict.fromkeys(graph.constants, CONSTANT))
    for value, activity in zip(graph.inputs, inputs, strict=True):
        found[value] = _carried(value, activity)
    for equation in graph.equations:
        for value, activity in zip(equation.outputs, _outputs(equation, found), strict=True):
            found[value] = _carried(value, activity)
    return [found[value] for value in graph.outputs]


def _carried(value: Value, activity: Activity) -> Activity:
    return activity if jnp.issubdtype(value.aval.dtype, jnp.inexact) else min(activity, DEPENDENT)


def _outputs(equation: Equation, found: dict[Value, Activity]) -> list[Activity]:
    inputs = [found[value] for value in equation.inputs]
    name = equation.primitive
    if name == "scan":
        return _loop(equation, inputs, *_compat.scan_counts(equation.origin), found)
    if name == "cond":
        index, *operands = inputs
        branches = [_visit(body, operands, found) for body in equation.bodies]
        # Which branch is taken changes the value, without a derivative.
        return [max(*outputs, min(index, DEPENDENT)) for outputs in zip(*branches, strict=True)]
    if equation.bodies:
        return _visit(equation.bodies[0], inputs, found)
    strongest = max(inputs, default=CONSTANT)
    if name in tables.NO_DERIVATIVE:
        strongest = min(strongest, STOPPED if name == "stop_gradient" else DEPENDENT)
    return [strongest] * len(equation.outputs)


def _loop(equation: Equation, inputs: list[Activity], n_consts: int, n_carry: int, found: dict) -> list[Activity]:
    """A carry is as active as its start and anything an iteration makes of it: repeat until nothing changes."""
    (body,) = equation.bodies
    carry = inputs[n_consts : n_consts + n_carry]
    while True:
        outputs = _visit(body, [*inputs[:n_consts], *carry, *inputs[n_consts + n_carry :]], found)
        joined = [max(pair) for pair in zip(carry, outputs[:n_carry], strict=True)]
        if joined == carry:
            return [*joined, *outputs[n_carry:]]
        carry = joined
