"""Bounds of the explained input, and what they become on the way to a layer."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._analysis.analyze import Analysis, Behind, Node
from jaxplain._engine.node_view import evaluate, run_equation
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir.graph import Equation, Value

Box: TypeAlias = tuple[jax.Array, jax.Array]


def image(analysis: Analysis, node: Node, bounds: tuple[Any, Any], leaves: Sequence[jax.Array]) -> Box | None:
    """The box [low, high] = `bounds` of the explained input at the input of a first layer; None for a layer that has its own units.

    What lies between the two moves, scales, shifts and averages elements: it maps bounds to bounds.
    """
    if node.behind is Behind.LAYER:
        return None
    is_inside = node not in analysis.nodes
    # In a body an element of the input may be anywhere: numbers are bounds of it all the same.
    is_far = is_inside and (node.behind is Behind.IMAGE or any(jnp.ndim(bound) for bound in bounds))
    if node.behind is Behind.OTHER or is_far:
        raise SettingError(
            explain_error(
                "rules.zbox: the bounds are in units of the explained input, but this layer reads something else.",
                where=node.source,
                got="preprocessing, or bounds that are arrays, inside a loop, branch or checkpoint"
                if is_inside
                else "differences or nonlinear functions of parts of the input",
                why="bounds can be followed through shifts, scales, averages and moves of elements alone",
                fix=(
                    "explain the preprocessed input: lrp(lambda h: score_of_preprocessed(h))(preprocess(x))",
                    "a first rule without bounds: rules.flat() or rules.wsquare()",
                ),
            )
        )
    if is_inside:
        return None
    corners = [[bound_like(node, bound, leaf, "explained input") for leaf in leaves] for bound in bounds]
    boxes: dict[Value, Box] = dict(zip(analysis.graph.inputs, zip(*corners, strict=True), strict=True))
    values: dict[Value, Any] = dict(analysis.graph.constants)
    for step in analysis.steps:
        if isinstance(step, Equation):
            if all(v in values for v in step.inputs):
                values.update(zip(step.outputs, run_equation(step, [values[v] for v in step.inputs]), strict=True))
        # What else it reads must be constant: an index that depends on the input has no bounds.
        elif (
            step.behind <= Behind.IMAGE
            and not step.bodies
            and boxes.keys() >= {*step.inputs}
            and values.keys() >= {*step.others}
        ):
            others = [values[v] for v in step.others]
            ends = [evaluate(step, [boxes[v][end] for v in step.inputs], others) for end in (0, 1)]
            # A negative scale exchanges them.
            boxes.update(
                (v, (jnp.minimum(*e), jnp.maximum(*e)))
                for v, e in zip(step.outputs, zip(*ends, strict=True), strict=True)
            )
        if node.inputs[0] in boxes:
            return boxes[node.inputs[0]]
    raise AssertionError("a first layer whose input no node makes")


def bound_like(node: Node, bound: Any, like: jax.Array, what: str) -> jax.Array:
    """A bound in the layout of what it bounds."""
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
