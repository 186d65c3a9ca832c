"""Bounds of the explained input, followed to the input of a layer, where they are the box of the z^B rule."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._analysis.analyze import Analysis
from jaxplain._analysis.nodes import Behind, Node
from jaxplain._engine.node_view import evaluate
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir.graph import Equation, Value
from jaxplain._ir.interpret import interpret, run_equation

Box: TypeAlias = tuple[jax.Array, jax.Array]


def bounds_at(analysis: Analysis, node: Node, bounds: tuple[Any, Any], leaves: Sequence[jax.Array]) -> Box | None:
    """Bounds of a first layer's input, from `bounds` = (low, high) of the explained input. None for a later layer.

    The steps between the two move, scale, shift and average elements, and so map bounds to bounds.
    """
    if node.behind is Behind.LAYER:
        return None
    is_inside = node not in analysis.nodes
    # In a body, the position of an element is unknown, but bounds that are numbers hold at every position.
    is_unknown = is_inside and (node.behind is Behind.RESCALED or any(jnp.ndim(bound) for bound in bounds))
    if node.behind is Behind.OTHER or is_unknown:
        raise _out_of_reach(node, is_inside)
    if is_inside:
        return None
    corners = [[bound_like(node, bound, leaf, "explained input") for leaf in leaves] for bound in bounds]
    values: dict[Value, Any] = {**analysis.constants}
    values.update((value, _Bounded(low, high)) for value, low, high in zip(analysis.inputs, *corners, strict=True))

    def run(step: Node | Equation, inputs: list[Any]) -> Sequence[Any] | None:
        n_active = 0 if isinstance(step, Equation) else len(step.inputs)
        active, others = inputs[:n_active], inputs[n_active:]
        # All other operands must be constant, because an index that depends on the input has no bounds.
        if any(isinstance(value, _Bounded) for value in others):
            return None
        if isinstance(step, Equation):
            return run_equation(step, others)
        if step.behind > Behind.RESCALED or step.bodies or not all(isinstance(value, _Bounded) for value in active):
            return None
        ends = [evaluate(step, [value[end] for value in active], others) for end in (0, 1)]
        # A negative scale exchanges the ends.
        return [_Bounded(jnp.minimum(*pair), jnp.maximum(*pair)) for pair in zip(*ends, strict=True)]

    before = analysis.steps[: analysis.steps.index(node)]
    found = interpret(before, values, run).get(node.inputs[0])
    if found is None:  # preprocessing in a body
        raise _out_of_reach(node, is_inside=True)
    return found.low, found.high


def _out_of_reach(node: Node, is_inside: bool) -> SettingError:
    return SettingError(
        explain_error(
            "rules.zbox: the bounds are in units of the explained input, but this layer reads something else.",
            where=node.source,
            got="preprocessing, or bounds that are arrays, inside a loop, branch or checkpoint"
            if is_inside
            else "differences or nonlinear functions of parts of the input",
            why="bounds can only be followed through shifts, scales, averages and data movement",
            fix=(
                "explain the preprocessed input: lrp(lambda h: score_of_preprocessed(h))(preprocess(x))",
                "a first rule without bounds: rules.flat() or rules.wsquare()",
            ),
        )
    )


class _Bounded(NamedTuple):
    """A value that is only known to lie between two others."""

    low: jax.Array
    high: jax.Array


def bound_like(node: Node, bound: Any, like: jax.Array, what: str) -> jax.Array:
    """A bound in the shape and dtype of `like`, which it bounds."""
    try:
        return _compat.zeros_like(like) + jnp.broadcast_to(jnp.asarray(bound, like.dtype), like.shape)
    except ValueError as error:
        raise SettingError(
            explain_error(
                f"rules.zbox: a bound does not broadcast to the {what}.",
                where=node.source,
                got=f"shape {jnp.shape(bound)}",
                need=f"a number, or a shape that broadcasts to {like.shape}",
            )
        ) from error
