"""Which values carry a derivative from the explained input to the score."""

import enum
from collections.abc import Collection, Iterable

import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._ir import primitives
from jaxplain._ir.graph import Equation, Graph, Value


class Activity(enum.IntEnum):
    """What a value has to do with the explained input; the larger one wins where several meet."""

    CONSTANT = 0
    STOPPED = 1  # changes with the input through `stop_gradient` alone: its author says that it carries nothing
    DEPENDENT = 2  # changes with the input but has no derivative: comparisons, indices, argmax
    ACTIVE = 3


CONSTANT, STOPPED, DEPENDENT, ACTIVE = Activity


def activities(
    graph: Graph, inputs: Iterable[Activity], followed: Collection[Equation] = (), *, look_ups: bool = False
) -> dict[Value, Activity]:
    """The activity of every value of a graph and of its bodies; `followed` are gradients stopped in vain.

    With `look_ups`, a float that an integer looks up (an embedding) is active, though no derivative leads to the integer.
    """
    return _Visit(followed, look_ups).found_in(graph, inputs)


# A table at indices, or its product with a one-hot code.
_LOOK_UPS = frozenset({"gather", "dynamic_slice", "dot_general"})


class _Visit:
    def __init__(self, followed: Collection[Equation], look_ups: bool):
        self._followed = followed
        self._look_ups = look_ups
        self._found: dict[Value, Activity] = {}

    def found_in(self, graph: Graph, inputs: Iterable[Activity]) -> dict[Value, Activity]:
        self._graph(graph, inputs)
        return self._found

    def _graph(self, graph: Graph, inputs: Iterable[Activity]) -> list[Activity]:
        found = self._found
        found.update(dict.fromkeys(graph.constants, CONSTANT))
        for value, activity in zip(graph.inputs, inputs, strict=True):
            found[value] = _carried(value, activity)
        for equation in graph.equations:
            for value, activity in zip(equation.outputs, self._outputs(equation), strict=True):
                found[value] = _carried(value, activity)
        return [found[value] for value in graph.outputs]

    def _outputs(self, equation: Equation) -> list[Activity]:
        inputs = [self._found[value] for value in equation.inputs]
        name = equation.primitive
        if name == "scan":
            return self._loop(equation, inputs, *_compat.scan_counts(equation.origin))
        if name == "cond":
            index, *operands = inputs
            branches = [self._graph(body, operands) for body in equation.bodies]
            # Which branch is taken changes the value, without a derivative.
            return [max(*outputs, min(index, DEPENDENT)) for outputs in zip(*branches, strict=True)]
        if equation.bodies:
            return self._graph(equation.bodies[0], inputs)
        strongest = max(inputs, default=CONSTANT)
        if self._look_ups and strongest is DEPENDENT and name in _LOOK_UPS:
            return [ACTIVE] * len(equation.outputs)
        if name in primitives.NO_DERIVATIVE and equation not in self._followed:
            strongest = min(strongest, STOPPED if name == "stop_gradient" else DEPENDENT)
        return [strongest] * len(equation.outputs)

    def _loop(self, equation: Equation, inputs: list[Activity], n_consts: int, n_carry: int) -> list[Activity]:
        """A carry is as active as its start and anything an iteration makes of it: repeat until nothing changes."""
        (body,) = equation.bodies
        carry = inputs[n_consts : n_consts + n_carry]
        while True:
            outputs = self._graph(body, [*inputs[:n_consts], *carry, *inputs[n_consts + n_carry :]])
            joined = [max(pair) for pair in zip(carry, outputs[:n_carry], strict=True)]
            if joined == carry:
                return [*joined, *outputs[n_carry:]]
            carry = joined


def _carried(value: Value, activity: Activity) -> Activity:
    return activity if jnp.issubdtype(value.aval.dtype, jnp.inexact) else min(activity, DEPENDENT)
