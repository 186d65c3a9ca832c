"""Activity: which values carry a derivative from the explained input to the score.

For example, in `i = argmax(x); y = x[i] * w`, w is CONSTANT, i is DEPENDENT, x and y are ACTIVE.
"""

import enum
from collections.abc import Collection, Iterable

import jax.numpy as jnp
from jax import lax

from jaxplain._analysis.constancy import varying
from jaxplain._ir.dataflow import Domain, forward
from jaxplain._ir.graph import Equation, Graph, Value
from jaxplain._ir.primitives import Trait


class Activity(enum.IntEnum):
    """How a value depends on the explained input. Where several paths meet, the maximum applies."""

    CONSTANT = 0
    STOPPED = 1  # changes with the input only through `stop_gradient`, so its author wants no derivative
    DEPENDENT = 2  # changes with the input but has no derivative: comparisons, indices, argmax
    ACTIVE = 3


CONSTANT, STOPPED, DEPENDENT, ACTIVE = Activity


def activities(
    graph: Graph, inputs: Iterable[Activity], followed: Collection[Equation] = (), *, look_ups: bool = False
) -> dict[Value, Activity]:
    """The activity of every value of a graph and of its bodies.

    Args:
        followed: `stop_gradient` equations to look through because the value that they stop cancels out.
        look_ups: Whether a float that an integer looks up (an embedding) is active, although the integer has no
            derivative.
    """

    def transfer(equation: Equation, before: list[Activity]) -> list[Activity]:
        strongest = max(before, default=CONSTANT)
        if look_ups and strongest is DEPENDENT and equation.has(Trait.LOOK_UP):
            strongest = ACTIVE
        elif equation.has(Trait.NO_DERIVATIVE) and equation not in followed:
            strongest = min(strongest, STOPPED if equation.op is lax.stop_gradient_p else DEPENDENT)
        return [strongest] * len(equation.outputs)

    changes = varying(graph)

    def narrow(value: Value, a: Activity) -> Activity:
        if changes.get(value) is False:
            return CONSTANT
        # An integer carries no derivative.
        return a if jnp.issubdtype(value.aval.dtype, jnp.inexact) else min(a, DEPENDENT)

    domain = Domain(
        unknown=lambda _: CONSTANT,
        transfer=transfer,
        join=max,
        narrow=narrow,
        # Which branch is taken changes the value, without a derivative.
        branch=lambda index, a: max(a, min(index, DEPENDENT)),
    )
    return forward(graph, inputs, domain)
