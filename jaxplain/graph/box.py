"""Bounds of the explained input, and what they become on the way to a layer."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._errors import SettingError, explain_error
from jaxplain.graph.analysis import Analysis, Behind, Node
from jaxplain.graph.flat import Graph, Value
from jaxplain.graph.layer import run_equation

Box: TypeAlias = tuple[jax.Array, jax.Array]


def image(analysis: Analysis, node: Node, bounds: tuple[Any, Any], leaves: Sequence[jax.Array]) -> Box | None:
    """The box [low, high] = `bounds` of the explained input at the input of a first layer; None for a layer that has its own units.

    What lies between the two moves, scales, shifts and averages elements: it maps bounds to bounds.
    """
    if node.behind is Behind.LAYER:
        return None
    is_inside = node not in analysis.nodes
    if node.behind is Behind.OTHER or (is_inside and node.behind is Behind.IMAGE):
        raise SettingError(
            explain_error(
                "rules.zbox: the bounds are in units of the explained input, but this layer reads something else.",
                where=node.source,
                got="preprocessing inside a loop or branch" if is_inside else "a nonlinear function of the input",
                why="bounds can be followed through shifts, scales, averages and moves of elements alone",
                fix=(
                    "explain the preprocessed input: lrp(lambda h: score_of_preprocessed(h))(preprocess(x))",
                    "a first rule without bounds: rules.flat() or rules.wsquare()",
                ),
            )
        )
    if is_inside:
        return None  # elements of the input: numbers are bounds of them wherever they are
    (value,) = node.inputs
    ends = [_at(analysis.graph, value, [_bound(node, bound, leaf) for leaf in leaves]) for bound in bounds]
    return jnp.minimum(*ends), jnp.maximum(*ends)


def _bound(node: Node, bound: Any, leaf: jax.Array) -> jax.Array:
    try:
        return _compat.zeros_like(leaf) + jnp.broadcast_to(jnp.asarray(bound, leaf.dtype), leaf.shape)
    except ValueError as error:
        raise SettingError(
            explain_error(
                "rules.zbox: a bound does not broadcast to the explained input.",
                where=node.source,
                got=f"shape {jnp.shape(bound)}",
                need=f"a number, or a shape that broadcasts to {leaf.shape}",
            )
        ) from error


def _at(graph: Graph, value: Value, inputs: Sequence[jax.Array]) -> jax.Array:
    """A value of the program on other inputs, by the equations that it needs."""
    needed = {value}
    for equation in reversed(graph.equations):
        if needed.intersection(equation.outputs):
            needed.update(equation.inputs)
    values: dict[Value, Any] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    for equation in graph.equations:
        if needed.intersection(equation.outputs) and value not in values:
            outputs = run_equation(equation, [values[v] for v in equation.inputs])
            values.update(zip(equation.outputs, outputs, strict=True))
    return values[value]
