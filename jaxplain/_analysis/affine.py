"""Affine runs: a contraction with the scaling, shifting and moving around it that nothing else reads.

For example, a convolution without bias and the batch norm after it are one node of kind "convolution":

    conv_general_dilated -> sub mean -> mul scale -> add shift -> max 0
    [core               ]  [suffix                           ]   [the activation, another node]

Data movement belongs to a run only between the core and a scale or shift:

    sub 127 -> reshape -> dot_general W -> reshape -> add b -> reshape -> max 0
    [prefix          ]    [core        ]   [suffix        ]   [a structural node of its own]
"""

from collections.abc import Sequence

from jax import lax

from jaxplain._analysis.activations import Flow
from jaxplain._analysis.nodes import Node
from jaxplain._analysis.normalization import Normalization
from jaxplain._ir.graph import Equation, Value, moved_axes, varying_axes
from jaxplain._ir.primitives import Trait


class AffineRuns:
    """Makes the nodes of affine runs from equations that no node has claimed."""

    def __init__(self, flow: Flow, claimed: set[Equation], cores: set[Equation], order: dict[Equation, int]):
        self._flow = flow
        self._claimed = claimed
        self._cores = cores
        self._order = order

    def contraction(self, core: Equation) -> Node:
        (operand,) = self._flow.active(core)
        (output,) = core.outputs
        prefix, start = self._before(core, operand)
        suffix, end = self._after(output)
        kind = core.row.kind or ("fft" if core.op is lax.fft_p else "sum")
        if kind == "sum" and any(self._weighs(equation) for equation in prefix):
            kind = "dense"  # sum(x * w)
        node = Node(
            kind, [start], [end], [*prefix, core, *suffix], self._order, core=core, prefix=prefix, suffix=suffix
        )
        node.scale_axes = _scale_axes(suffix, output, self._flow)
        return node

    def normalization(self, norm: Normalization) -> Node:
        equations = [norm.equation]
        root = norm.equation.inputs[1 - norm.factor]
        inside = {norm.equation, *norm.centering}
        if norm.centering and self._claimed.isdisjoint(norm.centering) and self._reads_only_inside(norm, inside):
            equations, root = [*norm.centering, norm.equation], norm.root
        suffix, end = self._after(norm.equation.outputs[0])
        equations = [*equations, *suffix]
        return Node("normalization", [root], [end], equations, self._order, named=norm.equation, suffix=suffix)

    def _reads_only_inside(self, norm: Normalization, inside: set[Equation]) -> bool:
        made = [value for equation in norm.centering for value in equation.outputs]
        return all(user in inside for value in made for user in self._flow.users.get(value, []))

    def scale_shift(self, first: Equation) -> Node:
        suffix, end = self._after(first.outputs[0])
        return Node("scale_shift", self._flow.active(first), [end], [first, *suffix], self._order, suffix=suffix)

    def _weighs(self, equation: Equation) -> bool:
        others = [v for v in equation.inputs if v not in self._flow.active(equation)]
        return equation.has(Trait.PRODUCT) and any(v.aval.size > 1 for v in others)

    def _is_free(self, equation: Equation) -> bool:
        return equation not in self._claimed and equation not in self._cores

    def _moves(self, equation: Equation, value: Value) -> bool:
        return equation.is_move and equation.inputs[0] is value

    def _after(self, value: Value) -> tuple[list[Equation], Value]:
        """Scaling, shifting and moving after `value`, up to the last scale or shift."""
        chain: list[Equation] = []
        kept, end = 0, value
        while (user := self._flow.only_user(value)) and self._is_free(user):
            is_affine = self._flow.is_affine(user)
            if not is_affine and not self._moves(user, value):
                break
            chain.append(user)
            value = user.outputs[0]
            if is_affine:
                kept, end = len(chain), value
        return chain[:kept], end

    def _before(self, core: Equation, value: Value) -> tuple[list[Equation], Value]:
        """Scaling, shifting and moving before the core, from the first scale or shift on."""
        chain: list[Equation] = []
        kept, start, user = 0, value, core
        while (source := value.source) and self._is_free(source) and self._flow.only_user(value) is user:
            is_affine = self._flow.is_affine(source)
            if not is_affine and not (self._moves(source, source.inputs[0]) and self._flow.active(source)):
                break
            chain.append(source)
            user, (value,) = source, self._flow.active(source)
            if is_affine:
                kept, start = len(chain), value
        return chain[:kept][::-1], start


def _scale_axes(suffix: Sequence[Equation], output: Value, flow: Flow) -> frozenset[int] | None:
    """The axes of `output` along which the factors in its suffix may differ; None if they are unknown.

    The axes of the core's output are followed through the moves. For example, for an output of shape (4, 4, 16),

        reshape (16, 16)      axes None: 4 x 4 is merged, so the result is None
        reshape (1, 4, 4, 16) axes (None, 0, 1, 2); then `mul` by a factor of shape (1, 1, 1, 16): {2}
    """
    axes: list[int | None] = list(range(len(output.shape)))
    found: set[int] = set()
    for equation in suffix:
        if equation.has(Trait.PRODUCT):
            (factor,) = (v for v in equation.inputs if v not in flow.active(equation))
            varying = varying_axes(factor)
            found.update(a for axis in varying if (a := axes[axis]) is not None)
        elif equation.is_move:
            moved = moved_axes(equation, axes)
            if moved is None:
                return None
            axes = moved
    return frozenset(found)
