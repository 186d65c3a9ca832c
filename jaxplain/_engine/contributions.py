"""The contributions of one sign to an addition: what z⁺ needs where a skip and a layer meet.

In h + h @ W, the skip and the layer are one affine map of h. Rules that split signs share relevance in proportion to
the positive parts of its contributions h_i and h_j w_ji, and not of the two branches, whose sums have lost them:

    h = [1, 1], W = [[-0.8], [0.3]]       h[0] + h @ W = 0.5
    branches       1, -0.5                shares 2 and -1 of the relevance
    contributions  1 | -0.8, 0.3          positive parts 1 | 0.3, shares 0.77 and 0.23

The layer divides its own share in the same proportions, so that all contributions share as in one layer. In h - h @ V,
the negative contributions of the layer count, there and in the layer.
"""

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._analysis.analyze import Analysis
from jaxplain._analysis.nodes import CONTRACTIONS, Node
from jaxplain._engine.node_view import Layer, evaluate
from jaxplain._ir.graph import Value

_SUBTRACTED = {lax.sub_p: 1, lax.scatter_sub_p: 2}  # the operand that counts with a minus


class Contributions:
    """The sums of the contributions of one sign to the values of a program, while it runs.

    A branch counts by its contributions if only the addition reads it, because it is then a part of one affine map. A
    value with other readers is a neuron, and contributes as a whole.

    Attributes:
        signs: The sign with which parts of additions count in them, where it is not +1.
    """

    def __init__(self, program: Analysis, values: Mapping[Value, Any], additions: Container[Node]):
        nodes = [step for step in program.steps if isinstance(step, Node) and not step.bodies]
        self._values = values
        self._maker = {value: node for node in nodes for value in node.outputs}
        self._readers = Counter(value for step in program.steps for value in dict.fromkeys(step.reads))
        self._readers.update(program.outputs)
        self.signs: dict[Node, int] = {}
        for node in reversed(nodes):
            if node in additions or (node in self.signs and node.kind == "structural"):
                for value, sign in self._signed(node, self.signs.get(node, +1)):
                    if sign < 0 and (part := self._part_of_sum(value)) is not None:
                        self.signs[part] = sign

    def to(self, addition: Node, *, absorb_bias: bool) -> tuple[jax.Array, ...]:
        """For each input of an addition, its positive contribution to the sum, with the sign that the sum undoes."""
        return self._inputs_of(addition, self.signs.get(addition, +1), absorb_bias)

    def _signed(self, node: Node, sign: int) -> list[tuple[Value, int]]:
        """The inputs of an addition or a move, and the sign of what they contribute to contributions of `sign`."""
        equation = node.equations[0]
        subtracted = _SUBTRACTED.get(equation.op)
        is_minus = [subtracted is not None and equation.inputs[subtracted] is value for value in node.inputs]
        return [(value, -sign if minus else sign) for value, minus in zip(node.inputs, is_minus, strict=True)]

    def _part_of_sum(self, value: Value) -> Node | None:
        """The node that makes a value for its one reader."""
        return self._maker.get(value) if self._readers[value] == 1 else None

    def _inputs_of(self, node: Node, sign: int, absorb_bias: bool) -> tuple[jax.Array, ...]:
        return tuple(self._part(value, part_sign, absorb_bias) for value, part_sign in self._signed(node, sign))

    def _part(self, value: Value, sign: int, absorb_bias: bool) -> jax.Array:
        """The sum of the contributions of this sign to a value."""
        node = self._part_of_sum(value)
        if node is not None:
            if node.kind in CONTRACTIONS and node.core is not None and node.core.op is not lax.fft_p:
                return self._of_layer(node, sign, absorb_bias)
            others = tuple(self._values[v] for v in node.others)
            if node.kind == "add" and len(node.equations) == 1:
                return evaluate(node, self._inputs_of(node, sign, absorb_bias), others)[0]
            if node.kind == "structural" and len(node.outputs) == 1:
                return _clipped(evaluate(node, self._inputs_of(node, sign, absorb_bias), others)[0], sign)
        return _clipped(self._values[value], sign)

    def _of_layer(self, node: Node, sign: int, absorb_bias: bool) -> jax.Array:
        inputs, others = (tuple(self._values[v] for v in part) for part in (node.inputs, node.others))
        layer = Layer(node, inputs, others, [])
        same, other = ("positive", "negative") if sign > 0 else ("negative", "positive")
        total = layer.linear(same)(_clipped(layer.x, +1))  # type: ignore[arg-type]
        if not node.is_nonnegative:
            total = total + layer.linear(other)(_clipped(layer.x, -1))  # type: ignore[arg-type]
        return total + _clipped(layer.bias, sign) if absorb_bias else total


def _clipped(v: jax.Array, sign: int) -> jax.Array:
    return jnp.maximum(v, 0) if sign > 0 else jnp.minimum(v, 0)
