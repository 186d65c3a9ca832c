"""Tests whether a score is a mean over the places of a map and then linear, as class activation mapping requires.

For example, mean over rows and columns -> dense has it; dense -> mean has it, too; flatten -> dense does not, because
its weights differ from place to place.
"""

import jax.numpy as jnp
from jax import lax

from jaxplain._analysis.activity import ACTIVE, CONSTANT
from jaxplain._engine.affine_prefix import is_affine_in
from jaxplain._ir.graph import Equation, Value, varying_axes
from jaxplain._ir.primitives import Trait
from jaxplain._layers.axes import AxisOrigins, Origins, is_place
from jaxplain._layers.default_map import between


def unlike_pooling(axes: AxisOrigins, value: Value) -> Equation | None:
    """The first equation because of which the score is not a sum over places with equal weights; None if it is one."""
    pooled = {value: False}
    for equation in between(axes.graph, value, axes.activity):
        active = [v for v in equation.inputs if axes.activity[v] is ACTIVE]
        states = {pooled.get(v) for v in active}
        if len(states) > 1 or None in states or not _is_affine(axes, equation, active):
            return equation
        was_pooled, origins = states.pop(), [axes[v] for v in equation.outputs]
        still_map = any(is_place(origin) for of in origins for origin in of)
        if not was_pooled and not _treats_alike(axes, equation, active[0]):
            return equation
        pooled.update(dict.fromkeys(equation.outputs, was_pooled or not still_map))
    return None if all(pooled.get(v) for v in axes.graph.outputs) else value.source


def _is_affine(axes: AxisOrigins, equation: Equation, active: list[Value]) -> bool:
    """Whether an equation is affine in its active operands for all x. An index of a class may depend on x."""
    held = [v for v in equation.inputs if axes.activity[v] not in (ACTIVE, CONSTANT)]
    are_indices = all(jnp.issubdtype(v.aval.dtype, jnp.integer) for v in held)
    looks_up = equation.op in (lax.gather_p, lax.dynamic_slice_p) and are_indices
    is_cast = equation.op is lax.convert_element_type_p
    return (not held or looks_up) and (is_cast or is_affine_in(equation, active))


def _treats_alike(axes: AxisOrigins, equation: Equation, operand: Value) -> bool:
    """Whether an affine equation does the same at each place, or sums over all places (of an axis)."""
    name, output, origins = equation.op, equation.outputs[0], axes[operand]
    places = [axis for axis, origin in enumerate(origins) if is_place(origin)]
    if name is lax.reduce_sum_p:
        return all(origins[axis].fills(operand.shape[axis]) for axis in places if axis in equation.params["axes"])  # type: ignore[union-attr]
    if name is lax.reduce_window_sum_p:
        return _tiles(equation)
    if not _may_treat_alike(equation) or equation in axes.mixing or _grid(origins) != _grid(axes[output]):
        return False
    if name is lax.dot_general_p and _has_weights_of_places(equation, operand, places):
        return False
    after = {axis for axis, origin in enumerate(axes[output]) if is_place(origin)}
    varies = equation.has(Trait.PRODUCT) or name is lax.select_n_p
    return not varies or all(v is operand or not v.shape or not varying_axes(v) & after for v in equation.inputs)


def _has_weights_of_places(equation: Equation, operand: Value, places: list[int]) -> bool:
    """Whether a product has weights that vary along a place that it keeps, as in einsum("pc,pc->p", h, W)."""
    _, batch = equation.params["dimension_numbers"]
    left, right = equation.inputs
    mine, others, weights = (*batch, right) if operand is left else (*batch[::-1], left)
    return any(a in places and b in varying_axes(weights) for a, b in zip(mine, others, strict=True))


def _may_treat_alike(equation: Equation) -> bool:
    traits = (Trait.AFFINE, Trait.IDENTITY, Trait.WEIGHTED, Trait.FORM)
    return any(map(equation.has, traits)) or equation.op in (lax.select_n_p, lax.optimization_barrier_p)


def _tiles(equation: Equation) -> bool:
    """Whether the windows of a pooling are adjacent and leave nothing out."""
    params, (operand, *_), (output, *_) = equation.params, equation.inputs, equation.outputs
    axes = zip(operand.shape, output.shape, params["window_dimensions"], params["window_strides"], strict=True)
    spread = (*params["base_dilation"], *params["window_dilation"])
    is_plain = all(n == 1 for n in spread) and not any(map(any, params["padding"]))
    return is_plain and all(m * width == n and (stride == width or m == 1) for n, m, width, stride in axes)


def _grid(origins: Origins) -> dict[tuple[int, int], int]:
    """The axes of inputs that are places of a value, with the number of places along each."""
    return {of: n for origin in origins if is_place(origin) for of, n in zip(origin.of, origin.sizes, strict=True)}
