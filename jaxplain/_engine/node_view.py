"""A node as a rule sees it: its inputs, its outputs, and the node as a linear map with other weights.

Affine nodes compute z = s ⊙ K(p ⊙ x + q) + b with a contraction K, and scales and shifts before and after it. Rules
need the map with changed weights (positive parts, squares, ones). The weights are those of the whole map s ⊙ K ⊙ p.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._analysis.constancy import Mixed
from jaxplain._analysis.nodes import Node
from jaxplain._analysis.softmax import Group
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir.graph import Equation, Value
from jaxplain._ir.interpret import interpret, run_equation
from jaxplain._ir.primitives import Trait
from jaxplain._leaves import pulled_back

Weights = Literal["full", "positive", "negative", "squared", "absolute", "ones"]


def evaluate(node: Node, inputs: Sequence[Any], others: Sequence[Any]) -> list[jax.Array]:
    """The node's outputs, by the program's own equations."""
    values = dict(zip((*node.inputs, *node.others), (*inputs, *others), strict=True))
    interpret(node.equations, values)
    return [values[v] for v in node.outputs]


class Layer:
    """One node of one evaluation, as a rule sees it.

    Attributes:
        node: The analyzed node.
        inputs: Values of the active inputs, which receive relevance.
        x: The first input.
        outputs: Values of the outputs, at which relevance arrives.
        output: The first output.
        box: Bounds of the layer's input, for a rule with bounds of the explained input.
        contributions: For an addition whose rule splits signs: the positive contributions of each input to the sum,
            with the signs that the inputs have in it (`contributions.py`).
        sign: −1 for a layer that such an addition subtracts, whose negative contributions count there.
    """

    def __init__(
        self,
        node: Node,
        inputs: tuple,
        others: tuple,
        outputs: list,
        box: tuple | None = None,
        contributions: tuple | None = None,
        sign: int = +1,
    ):
        self.node = node
        self.box = box
        self.contributions = contributions
        self.sign = sign
        self.inputs = inputs
        self._others = others
        self.outputs = outputs
        self.to_bias: jax.Array | float = 0.0  # relevance that a rule gave to the bias, for the ledger

    @property
    def x(self) -> jax.Array:
        return self.inputs[0]

    @property
    def output(self) -> jax.Array:
        return self.outputs[0]

    def transpose(self, *cotangents: jax.Array) -> tuple[jax.Array, ...]:
        """Jᵀ·cotangents, the ordinary backpropagation to each input."""
        _, pullback = jax.vjp(self.at, *self.inputs)
        return pulled_back(lambda *c: pullback(list(c)), cotangents, [out.dtype for out in self.outputs])

    def at(self, *inputs: jax.Array) -> list[jax.Array]:
        """The outputs for other inputs."""
        return evaluate(self.node, inputs, self._others)

    def with_inputs(self, inputs: tuple) -> "Layer":
        """The node at other inputs, for its derivative there."""
        return Layer(self.node, inputs, self._others, [])

    def push_forward(self, *tangents: jax.Array) -> list[jax.Array]:
        """J·tangents: the derivative of each output along one tangent for each input."""
        tangents = tuple(t.astype(x.dtype) for t, x in zip(tangents, self.inputs, strict=True))
        return jax.jvp(self.at, self.inputs, tangents)[1]

    def pass_back(self, relevance: jax.Array) -> jax.Array:
        """Relevance of the output in the layout of the input, through the node's data movement only."""
        node = self.node
        if any(e.is_move for e in node.suffix):
            (start,) = (v for v in node.suffix[0].inputs if v in node.inputs or v.source in node.equations)
            like = jnp.zeros(start.shape, relevance.dtype)
            (relevance,) = jax.linear_transpose(lambda v: self._moves(node.suffix, start, v), like)(relevance)
        return summed_to(self.x.shape, relevance)

    @property
    def is_elementwise_product(self) -> bool:
        """Whether each output of a product is one product or quotient."""
        (equation,) = self.node.equations
        return equation.has(Trait.PRODUCT)

    @cached_property
    def constant(self) -> list[jax.Array | None]:
        """For a product: where each input does not change with the explained input; None if it changes everywhere."""
        return [jnp.asarray(~fact.mask) if isinstance(fact, Mixed) else None for fact in self.node.varying]

    def to_factor(self, index: int, relevance: jax.Array) -> jax.Array:
        """For an elementwise product: relevance in the layout of one input, summed where it was broadcast.

        An input that occurs as several factors gets the relevance once for each.
        """
        (equation,) = self.node.equations
        places = [i for i, value in enumerate(equation.inputs) if value is self.node.inputs[index]]
        return len(places) * summed_to(self.inputs[index].shape, relevance)

    @cached_property
    def bias(self) -> jax.Array:
        """The value of an affine node at x = 0."""
        zeros = [_compat.zeros_like(x) for x in self.inputs]
        return evaluate(self.node, zeros, self._others)[0]

    def linear(self, weights: Weights = "full") -> Callable[[jax.Array], jax.Array]:
        """The node without its bias, as a function of its one input, with the given weights."""
        if weights == "full":
            return lambda v: self.push_forward(v)[0]
        if self.node.core is None or self.node.core.op is lax.fft_p:
            raise SettingError(
                explain_error(
                    f"a rule asks for the {weights} weights of a node without weights.",
                    where=self.node.source,
                    got=f"kind {self.node.kind}, primitive {self.node.primitive}",
                    fix=f'give this kind a rule without weights: {{"{self.node.kind}": rules.epsilon()}}',
                )
            )
        return lambda v: self._with_weights(weights, v)

    def group_sum(self, v: jax.Array) -> jax.Array:
        """For a softmax: the sum of v over each group that it normalizes, broadcast back over the group."""
        start, equations = cast(Group, self.node.group)
        value = start
        for equation in equations:
            if equation.op in (lax.reduce_sum_p, lax.broadcast_in_dim_p, lax.gather_p) or equation.is_move:
                inputs = [v if operand is value else self._values.get(operand) for operand in equation.inputs]
                (v,) = run_equation(equation, inputs)
            elif equation.has(Trait.SUMMING):  # into segments
                zeros = jnp.zeros(equation.outputs[0].shape, v.dtype)
                (v,) = run_equation(equation, [zeros, self._values[equation.inputs[1]], v])
            (value,) = equation.outputs  # guards against zero, casts and reciprocals leave v as it is
        return v

    def summed(self, v: jax.Array) -> jax.Array:
        """The sum of v over the windows or axes of a maximum."""
        (equation,) = self.node.equations
        params = equation.params
        if equation.op in (lax.reduce_max_p, lax.reduce_min_p):
            return jnp.sum(v, axis=params["axes"])
        if equation.op in (lax.reduce_window_max_p, lax.reduce_window_min_p):
            names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
            return lax.reduce_window(v, v.dtype.type(0), lax.add, **{name: params[name] for name in names})
        raise SettingError(
            explain_error(
                "a rule asks for the sum in place of a maximum that is not over a window or axis.",
                where=self.node.source,
                got=f"primitive {equation.primitive}",
                fix='give maxima the winner-take-all rule: {"max": rules.winner_takes_all()}',
            )
        )

    # The parts of an affine node

    @cached_property
    def _values(self) -> dict[Value, Any]:
        return dict(zip(self.node.others, self._others, strict=True))

    def _part(self, equations: Sequence[Equation], start: Value, v: jax.Array) -> jax.Array:
        values = {**self._values, start: v}
        interpret(equations, values)
        return values[equations[-1].outputs[0]] if equations else v

    def _moves(self, equations: Sequence[Equation], start: Value, v: jax.Array) -> jax.Array:
        """The data movement and casts of some equations, without their scales and shifts."""
        moved = {start: v}
        for equation in equations:
            (operand,) = (value for value in equation.inputs if value in moved)
            if equation.is_move:
                (moved[equation.outputs[0]],) = run_equation(equation, [moved[operand]])
            else:
                moved[equation.outputs[0]] = moved[operand].astype(equation.outputs[0].aval.dtype)
            v = moved[equation.outputs[0]]
        return v

    def _scale(self, equations: Sequence[Equation], start: Value, like: jax.Array) -> jax.Array | None:
        """The factors that some equations multiply by, in the layout of their output; None without factors."""
        if not _scales(equations, start):
            return None
        zeros = _compat.zeros_like(like)
        # The tangent, not a difference of values: shifts may be infinite (masks).
        return jax.jvp(lambda v: self._part(equations, start, v), (zeros,), (zeros + 1,))[1]

    def _contract(self, weight: jax.Array | None, v: jax.Array) -> jax.Array:
        """The contraction of v with another weight, or with None for a contraction whose weights are ones."""
        core = self._core
        operand, kernel = self._operands
        inputs = [v if value is operand else self._values.get(value) for value in core.inputs]
        if kernel is not None:
            inputs[core.inputs.index(kernel)] = weight
        elif not core.has(Trait.WEIGHTED) and len(core.inputs) > 1:  # scatter-add: onto zeros
            inputs = [i if value is operand or i is None or not _is_float(i) else _compat.zeros_like(i)
                      for value, i in zip(core.inputs, inputs, strict=True)]  # fmt: skip
        return run_equation(core, inputs)[0]

    @property
    def _core(self) -> Equation:
        return cast(Equation, self.node.core)

    @cached_property
    def _operands(self) -> tuple[Value, Value | None]:
        """The active operand of the core, and its operand with the weights."""
        core, node = self._core, self.node
        operand = node.prefix[-1].outputs[0] if node.prefix else node.inputs[0]
        kernel = core.inputs[1 - core.inputs.index(operand)] if core.has(Trait.WEIGHTED) else None
        return operand, kernel

    def _with_weights(self, weights: Weights, v: jax.Array) -> jax.Array:
        node, core = self.node, self._core
        _, kernel = self._operands
        v = self._moves(node.prefix, node.inputs[0], v)
        weight = None if kernel is None else self._values[kernel]
        before = self._scale(node.prefix, node.inputs[0], self.x)
        after = None
        if _scales(node.suffix, core.outputs[0]):
            plain = self._contract(weight, v)
            folded = None if weight is None else self._folded(weight, plain)
            if folded is None:
                after = self._scale(node.suffix, core.outputs[0], plain)
            else:
                weight = folded

        def contract(w: jax.Array | None, scale: jax.Array | None) -> jax.Array:
            return self._contract(w, v if scale is None else v * scale)

        def scaled(y: jax.Array, scale: jax.Array | None) -> jax.Array:
            y = self._moves(node.suffix, core.outputs[0], y)
            return y if scale is None else y * scale

        if weights == "ones":
            return scaled(contract(None if weight is None else jnp.ones_like(weight), None), None)
        if weights in ("squared", "absolute"):
            change = _square if weights == "squared" else _absolute
            return scaled(contract(change(weight), change(before)), change(after))
        # The weight of the whole map is a product of up to three factors: after · weight · before. With p = max(·, 0)
        # and n = min(·, 0), the positive part of a product is the sum over all combinations of signs that give +:
        #
        #     (a w b)⁺ = aᵖ wᵖ bᵖ + aᵖ wⁿ bⁿ + aⁿ wⁿ bᵖ + aⁿ wᵖ bⁿ         for "positive"
        #     (a w b)⁻ = aᵖ wⁿ bᵖ + aᵖ wᵖ bⁿ + aⁿ wᵖ bᵖ + aⁿ wⁿ bⁿ         for "negative"
        #
        # The signs of `after` and `before` determine the sign of `weight`. Without a factor, its sign is +; without
        # `weight` (a sum, whose weights are ones), only combinations with sign + for it remain.
        wanted = 1 if weights == "positive" else -1
        parts = [
            scaled(contract(_part_of(weight, sign), _part_of(before, sign_before)), _part_of(after, sign_after))
            for sign_after in _signs(after)
            for sign_before in _signs(before)
            if (sign := wanted * sign_after * sign_before) > 0 or weight is not None
        ]
        return sum(parts[1:], parts[0]) if parts else scaled(_compat.zeros_like(contract(None, None)), None)

    def _folded(self, weight: jax.Array, output: jax.Array) -> jax.Array | None:
        """The weights times a scale that depends only on the output channel, which saves a contraction; else None."""
        axes = self._channel_axes()
        varying = self.node.scale_axes
        if axes is None or varying is None or not varying <= set(axes):
            return None
        # The scale in the layout of the contraction's output, one line of it along the axes of its weights.
        zeros = _compat.zeros_like(output)
        end, pullback = jax.vjp(lambda y: self._part(self.node.suffix, self._core.outputs[0], y), zeros)
        (scale,) = pullback(_compat.zeros_like(end) + 1)
        line = scale[tuple(slice(None) if axis in axes else 0 for axis in range(scale.ndim))]
        kept = sorted(axes)
        line = jnp.transpose(line, [kept.index(axis) for axis in sorted(axes, key=axes.__getitem__)])
        shape = [1] * weight.ndim
        for axis, place in axes.items():
            shape[place] = output.shape[axis]
        return weight * line.reshape(shape)

    def _channel_axes(self) -> dict[int, int] | None:
        """Maps axes of the core's output to the axes of its weights from which alone they come."""
        core = self._core
        operand, kernel = self._operands
        if kernel is None:
            return None
        is_right = core.inputs[1] is kernel
        if core.op is lax.conv_general_dilated_p:
            numbers = core.params["dimension_numbers"]
            return {numbers.out_spec[1]: numbers.rhs_spec[0]} if is_right else None
        if core.op is not lax.dot_general_p:
            return None
        (contracting, batch) = core.params["dimension_numbers"]
        side, other = (1, 0) if is_right else (0, 1)
        free = [a for a in range(len(kernel.shape)) if a not in (*contracting[side], *batch[side])]
        n_other = len(operand.shape) - len(contracting[other]) - len(batch[other])
        start = len(batch[0]) + (n_other if is_right else 0)
        return {start + i: axis for i, axis in enumerate(free)}


def summed_to(shape: tuple[int, ...], relevance: jax.Array) -> jax.Array:
    """Relevance of a value of this shape that was broadcast: the sum over the axes that it was broadcast along."""
    if shape == ():
        return jnp.sum(relevance)
    spread = [axis for axis, (a, b) in enumerate(zip(shape, relevance.shape, strict=True)) if a != b]
    return jnp.sum(relevance, axis=spread, keepdims=True) if spread else relevance


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def _scales(equations: Sequence[Equation], value: Value) -> bool:
    """Whether a chain of equations from `value` multiplies, including by −1 (c − x)."""
    for equation in equations:
        if equation.has(Trait.PRODUCT) or equation.op is lax.neg_p:
            return True
        if equation.op is lax.sub_p and equation.inputs[1] is value:
            return True
        (value,) = equation.outputs
    return False


def _signs(scale: jax.Array | None) -> tuple[int, ...]:
    return (1,) if scale is None else (1, -1)


def _part_of(value: jax.Array | None, sign: int) -> Any:
    """max(v, 0) or min(v, 0)."""
    if value is None:
        return None
    return jnp.maximum(value, 0) if sign > 0 else jnp.minimum(value, 0)


def _absolute(value: jax.Array | None) -> Any:
    return None if value is None else jnp.abs(value)


def _square(value: jax.Array | None) -> Any:
    return None if value is None else value * value
