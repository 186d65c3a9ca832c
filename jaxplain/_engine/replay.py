"""Runs a program again with other derivatives of chosen nodes. A propagation method is `jax.vjp` of a replay."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxplain._analysis.analyze import Analysis
from jaxplain._analysis.nodes import Node
from jaxplain._engine.contributions import Contributions
from jaxplain._engine.input_bounds import Box
from jaxplain._engine.node_view import Layer, evaluate
from jaxplain._ir.graph import Equation
from jaxplain._ir.interpret import interpret, rebuilt, run_equation
from jaxplain._leaves import wide_dtype

# Maps a node as it was evaluated, and the relevance of its outputs, to the relevance of its active inputs.
Backward = Callable[[Layer, tuple[jax.Array, ...]], tuple[jax.Array, ...]]
Tally = Callable[[Layer, tuple[jax.Array, ...], tuple[jax.Array, ...]], jax.Array]


def replay(
    analysis: Analysis,
    backward: Callable[[Node], Backward | None],
    probes: dict[Node, jax.Array] | None = None,
    tally: Tally | None = None,
    boxes: dict[Node, Box] | None = None,
    additions: Mapping[Node, bool] | None = None,
) -> Callable[..., list[jax.Array]]:
    """The analyzed program as a function of its flat inputs, with other derivatives.

    Args:
        backward: Maps a node to a replacement of its derivative, or to None to keep it. Values never change.
        probes: Zeros of the shape that `tally` returns, one for each node to watch. The cotangent of a node's probe is
            its tally, summed over loops.
        tally: Maps a layer, the arriving relevance and the leaving relevance to the numbers to keep.
        boxes: Bounds of the inputs of some nodes, for their rules.
        additions: Additions whose rules split signs, and whether biases count as contributions there.
    """

    def run(program: Analysis, inputs: Sequence[Any]) -> list[Any]:
        values = {**program.constants, **dict(zip(program.inputs, inputs, strict=True))}
        contributions = Contributions(program, values, additions) if additions else None

        def run_step(step: Node | Equation, inputs: list[Any]) -> Sequence[Any]:
            if isinstance(step, Equation):
                return run_equation(step, inputs)
            if step.bodies:
                return rebuilt(step.control, step.bodies, inputs, run)
            probe = None if probes is None else probes.get(step)
            rule = backward(step) or (None if probe is None else _own_derivative)
            n = len(step.inputs)
            active, others = tuple(inputs[:n]), tuple(inputs[n:])
            if rule is None:
                return evaluate(step, active, others)
            parts, sign = None, +1
            if additions and contributions:
                sign = contributions.signs.get(step, +1)
                if step in additions:
                    parts = contributions.to(step, absorb_bias=additions[step])
            return _overridden(step, rule, tally, sign)(active, others, (boxes or {}).get(step), parts, probe)

        interpret(program.steps, values, run_step)
        return [values[v] for v in program.outputs]

    return lambda *inputs: run(analysis, inputs)


def _own_derivative(layer: Layer, arriving: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return layer.transpose(*arriving)


def _overridden(node: Node, rule: Backward, tally: Tally | None, sign: int) -> Callable[..., list[jax.Array]]:
    # A rule captures no array, because everything that a node reads is an operand. Only active ones get cotangents.
    @jax.custom_vjp
    def call(inputs: tuple, others: tuple, _box: Box | None, _parts: tuple | None, _probe: Any) -> list[jax.Array]:
        return evaluate(node, inputs, others)

    def forward(inputs: tuple, others: tuple, box: Box | None, parts: tuple | None, _probe: Any) -> tuple[list, tuple]:
        outputs = evaluate(node, inputs, others)
        return outputs, (inputs, others, outputs, box, parts)

    def backwards(residuals: tuple, arriving: list) -> tuple:
        inputs, others, outputs, box, parts = residuals
        layer = Layer(node, inputs, others, outputs, box, parts, sign)
        # In float32 or better, because in bf16 1e-3 + 1e-6 is 1e-3.
        arriving = [r.astype(wide_dtype(r)) for r in arriving]
        leaving = rule(layer, tuple(arriving))
        leaving = tuple(r.astype(x.dtype) for r, x in zip(leaving, layer.inputs, strict=True))
        return leaving, None, None, None, None if tally is None else tally(layer, tuple(arriving), leaving)

    call.defvjp(forward, backwards)
    return call
