"""Evaluates a program at the input and at a reference, with the linear map from input changes to output changes.

Methods of the DeepLIFT kind explain the change of each value by the changes of the values before it: each node gets a
linear map M with M·(x − x₀) = y − y₀ exactly. The maps are evaluated as a third program, linear in a variable that
stands for the change of the input, and `jax.vjp` transposes the whole. For example, with a multiplier from the secant
of relu between −1 and 1:

    h  = x @ w     Paired(x=1,  x0=-1, linear=d @ w)
    y  = relu(h)   Paired(x=1,  x0=0,  linear=0.5 * (d @ w))      0.5 = (1 - 0) / (1 - (-1))
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._analysis.activity import ACTIVE, CONSTANT, DEPENDENT, Activity
from jaxplain._analysis.analyze import Analysis
from jaxplain._analysis.nodes import Node
from jaxplain._engine.node_view import Layer, evaluate
from jaxplain._ir.graph import Equation
from jaxplain._ir.interpret import interpret, rebuilt, run_equation
from jaxplain._leaves import wide_dtype

Parts = tuple[jax.Array, ...]  # one change, or the parts that it is split into
LinearMap = Callable[[Sequence[Parts]], list[Parts]]  # from the parts of each input to those of each output
# Maps a node at the input, the node at the reference, and the parts of its inputs' changes to its linear map, and to
# the parts of its outputs' changes. None for these parts means the map applied to those of the inputs.
PairedRule = Callable[[Layer, Layer, Sequence[Parts]], tuple[LinearMap, list[Parts] | None]]


class Paired(NamedTuple):
    """A value that differs between input and reference. Only active ones have `parts` and `linear`.

    Attributes:
        x: Value at the input.
        x0: Value at the reference.
        parts: Parts that the change x − x₀ is split into, or ().
        linear: The change, or its parts, as a linear function of the variable.
    """

    x: Any
    x0: Any
    parts: Parts = ()
    linear: Parts = ()


def paired_replay(
    analysis: Analysis, rule: Callable[[Node], PairedRule], n_parts: int
) -> Callable[[Sequence[Paired]], tuple[Paired, jax.Array]]:
    """The analyzed program on paired values: its result, and the number of a node with an unexplained change.

    Nodes are numbered from 1, as in `analysis.all_nodes()`. 0 means no such node, and the number after the last node
    means that the output has no derivative.
    """
    return _PairedReplay(analysis, rule, n_parts)


class _PairedReplay:
    def __init__(self, analysis: Analysis, rule: Callable[[Node], PairedRule], n_parts: int):
        self._analysis = analysis
        self._activity = analysis.activity
        self._rule = rule
        self._n_parts = n_parts
        self._number = {node: i for i, node in enumerate(analysis.all_nodes(), 1)}

    def __call__(self, inputs: Sequence[Paired]) -> tuple[Paired, jax.Array]:
        graph = self._analysis.graph
        outputs, jump = _and_jump(self._run(self._analysis, inputs))
        (end,) = self._lifted(outputs, [ACTIVE])
        if self._activity[graph.outputs[0]] is DEPENDENT:
            jump = jnp.where(end.x != end.x0, len(self._number) + 1, jump)
        return end, jump

    def _run(self, program: Analysis, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a program, and the number of a node that jumps."""
        kinds = [self._activity[v] for v in program.inputs]
        values = {**program.constants, **dict(zip(program.inputs, self._lifted(inputs, kinds), strict=True))}
        jumps = [_zero_like(inputs)]

        def run(step: Node | Equation, inputs: list[Any]) -> Sequence[Any]:
            if isinstance(step, Equation):
                return self._equation(step, inputs)
            if step.bodies:
                outputs, jump = self._bodies(step, inputs)
            else:
                n = len(step.inputs)
                outputs, jump = self._node(step, inputs[:n], inputs[n:])
            jumps.extend(jump)
            return outputs

        interpret(program.steps, values, run)
        return [*(values[v] for v in program.outputs), _largest(jumps)]

    def _equation(self, equation: Equation, inputs: list[Any]) -> list[Any]:
        """An equation outside of nodes, evaluated twice if its operands differ."""
        kinds = [self._activity[v] for v in equation.outputs]
        here = run_equation(equation, [_here(v) for v in inputs])
        if not any(isinstance(v, Paired) for v in inputs):
            return self._lifted(here, kinds)
        there = run_equation(equation, [_there(v) for v in inputs])
        return self._lifted([Paired(a, b) for a, b in zip(here, there, strict=True)], kinds)

    def _node(self, node: Node, inputs: list[Paired], others: list[Any]) -> tuple[list[Paired], list[jax.Array]]:
        layers = []
        for pick in (_here, _there):
            active, constant = tuple(map(pick, inputs)), tuple(map(pick, others))
            layers.append(Layer(node, active, constant, evaluate(node, active, constant)))
        here, there = layers
        changes = [paired.parts or (difference(paired.x, paired.x0).astype(paired.x.dtype),) for paired in inputs]
        linear, parts = self._rule(node)(here, there, changes)
        ends = linear([paired.linear for paired in inputs])
        if self._n_parts == 1:
            parts = [()] * len(ends)
        elif parts is None:
            parts = linear(changes)
        outputs = [Paired(*whole) for whole in zip(here.outputs, there.outputs, parts, ends, strict=True)]
        if not self._may_jump(node):
            return outputs, []
        by_element = node.kind in ("structural", "activation")
        explained = linear(changes)
        checks = [_is_unexplained(*pair, by_element) for pair in zip(outputs, explained, strict=True)]
        return outputs, [jnp.where(jnp.stack(checks).any(), self._number[node], 0)]

    def _may_jump(self, node: Node) -> bool:
        """Whether outputs may change for a reason other than the inputs: an index, a mask, the order of a sort."""
        is_sorted_along = node.named.op is lax.sort_p and len(node.named.inputs) > 1
        return is_sorted_along or any(self._activity[value] is DEPENDENT for value in node.others)

    def _bodies(self, node: Node, inputs: list[Any]) -> tuple[list[Any], list[jax.Array]]:
        (equation,) = node.equations
        jumps = []
        kinds = [self._activity[v] for v in node.bodies[0].graph.inputs]
        if node.kind == "branch":
            index, *inputs = inputs
            jumps.append(jnp.where(_here(index) != _there(index), self._number[node], 0))
            inputs = [_here(index), *self._lifted(inputs, kinds)]
        else:
            inputs = self._lifted(inputs, kinds)
        ends = [self._activity[v] for v in equation.outputs]
        if node.kind == "loop":
            carry = _compat.split_scan(equation.origin, kinds)[1]
            ends = [*carry, *ends[len(carry) :]]

        def run(body: Analysis, arguments: Sequence[Any]) -> list[Any]:
            outputs, jump = _and_jump(self._run(body, arguments))
            return [*self._lifted(outputs, ends), jump]

        outputs, jump = _and_jump(rebuilt(equation, node.bodies, inputs, run))
        return self._lifted(outputs, [self._activity[v] for v in equation.outputs]), [*jumps, jnp.max(jump, initial=0)]

    def _lifted(self, values: Sequence[Any], kinds: Sequence[Activity]) -> list[Any]:
        """Values in the form of a given activity. A value that does not differ is paired with itself where needed."""
        return [self._lift(value, kind) for value, kind in zip(values, kinds, strict=True)]

    def _lift(self, value: Any, kind: Activity) -> Any:
        if kind is CONSTANT:
            return _here(value)
        paired = value if isinstance(value, Paired) else Paired(value, value)
        if kind is not ACTIVE:
            return Paired(paired.x, paired.x0)
        if paired.linear:
            return paired
        nothing = (_compat.zeros_like(paired.x),) * self._n_parts
        return Paired(paired.x, paired.x0, nothing if self._n_parts > 1 else (), nothing)


def _here(value: Any) -> Any:
    return value.x if isinstance(value, Paired) else value


def _there(value: Any) -> Any:
    return value.x0 if isinstance(value, Paired) else value


def _and_jump(outputs: list[Any]) -> tuple[list[Any], jax.Array]:
    return outputs[:-1], outputs[-1]


def _zero_like(inputs: Sequence[Any]) -> jax.Array:
    """Zero, varying over the `shard_map` axes of the inputs, so that all branches return the same type."""
    zero = jnp.int32(0)
    for value in inputs:
        zero = _compat.varying_like(zero, jax.typeof(_here(value)))
    return zero


def _largest(jumps: list[jax.Array]) -> jax.Array:
    largest = jumps[0]
    for jump in jumps[1:]:
        largest = jnp.maximum(largest, jump)
    return largest


def _is_unexplained(paired: Paired, parts: Parts, by_element: bool) -> jax.Array:
    """Whether the parts of a change miss it by more than the rounding of the element, or of all that is summed."""
    change = difference(paired.x, paired.x0)
    missing = jnp.abs(change - sum(part.astype(change.dtype) for part in parts))
    sizes = [jnp.where(jnp.isfinite(v), jnp.abs(v), 0) for v in (paired.x, paired.x0)]
    size = jnp.maximum(*sizes)
    size = size if by_element else jnp.max(size, initial=0)
    return ~jnp.all(missing <= jnp.sqrt(jnp.finfo(paired.x.dtype).eps) * size)  # NaN is unexplained


def wide(v: jax.Array) -> jax.Array:
    """In float32 or better."""
    return v.astype(wide_dtype(v))


def difference(x: jax.Array, x0: jax.Array) -> jax.Array:
    """x − x₀ in float32 or better; zero between equal infinities (masked logits)."""
    x, x0 = wide(x), wide(x0)
    same = x == x0
    return jnp.where(same, 0, jnp.where(same, 0, x) - jnp.where(same, 0, x0))
