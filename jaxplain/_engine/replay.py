"""Run a program again with the derivative of chosen nodes replaced: all propagation methods are this, and then `jax.vjp`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxplain import _compat
from jaxplain._analysis.analyze import Analysis, Node
from jaxplain._engine.input_bounds import Box
from jaxplain._engine.node_view import Layer, evaluate, run_equation
from jaxplain._ir.graph import Equation
from jaxplain._leaves import wide_dtype

# From a node as it was evaluated and what arrives at its outputs to what goes on to its active inputs.
Backward = Callable[[Layer, tuple[jax.Array, ...]], tuple[jax.Array, ...]]
Tally = Callable[[Layer, tuple[jax.Array, ...], tuple[jax.Array, ...]], jax.Array]


def replay(
    analysis: Analysis,
    backward: Callable[[Node], Backward | None],
    probes: dict[Node, jax.Array] | None = None,
    tally: Tally | None = None,
    boxes: dict[Node, Box] | None = None,
) -> Callable[..., list[jax.Array]]:
    """The analyzed program as a function of its flat inputs, in which `backward(node)` stands for a node's derivative.

    Nodes without one keep their own derivative. The values are those of the program, equation by equation. A node with a probe (a
    zero of the shape that `tally` returns) has that tally as the probe's cotangent, summed over loops. `boxes` are bounds of the
    inputs of some nodes, for their rules.
    """

    def run_node(node: Node, values: dict[Any, Any]) -> list[Any]:
        if node.bodies:
            return run_bodies(node, [values[v] for v in node.equations[0].inputs], run)
        probe = None if probes is None else probes.get(node)
        rule = backward(node) or (None if probe is None else _own_derivative)
        inputs = tuple(values[v] for v in node.inputs)
        others = tuple(values[v] for v in node.others)
        if rule is None:
            return evaluate(node, inputs, others)
        return _overridden(node, rule, tally)(inputs, others, (boxes or {}).get(node), probe)

    def run(graph: Analysis, inputs: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(graph.graph.constants)
        values.update(zip(graph.graph.inputs, inputs, strict=True))
        for step in graph.steps:
            if isinstance(step, Equation):
                outputs = run_equation(step, [values[v] for v in step.inputs])
                # What a node has made of an equation's output is what others read.
                values.update((v, out) for v, out in zip(step.outputs, outputs, strict=True) if v not in values)
            else:
                made = step.equations[0].outputs if step.bodies else step.outputs
                values.update(zip(made, run_node(step, values), strict=True))
        return [values[v] for v in graph.graph.outputs]

    return lambda *inputs: run(analysis, inputs)


def _own_derivative(layer: Layer, arriving: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return layer.transpose(*arriving)


def _overridden(node: Node, rule: Backward, tally: Tally | None) -> Callable[..., list[jax.Array]]:
    # A rule captures no array: whatever a node reads is an operand, and what is not active gets no cotangent.
    @jax.custom_vjp
    def call(inputs: tuple, others: tuple, _box: Box | None, _probe: Any) -> list[jax.Array]:
        return evaluate(node, inputs, others)

    def forward(inputs: tuple, others: tuple, box: Box | None, _probe: Any) -> tuple[list, tuple]:
        outputs = evaluate(node, inputs, others)
        return outputs, (inputs, others, outputs, box)

    def backwards(residuals: tuple, arriving: list) -> tuple:
        layer = Layer(node, *residuals)
        # In float32 or better: in bf16, 1e-3 + 1e-6 is 1e-3.
        arriving = [r.astype(wide_dtype(r)) for r in arriving]
        leaving = rule(layer, tuple(arriving))
        leaving = tuple(r.astype(x.dtype) for r, x in zip(leaving, layer.inputs, strict=True))
        return leaving, None, None, None if tally is None else tally(layer, tuple(arriving), leaving)

    call.defvjp(forward, backwards)
    return call


def run_bodies(node: Node, inputs: list[Any], run: Callable[[Analysis, Sequence[Any]], list]) -> list[Any]:
    """A loop, a branch or a checkpoint around the replay of its bodies.

    Values may be pytrees; what `run` returns beyond the outputs of a body is returned after the outputs, stacked by a loop.
    """
    (equation,) = node.equations
    params = equation.params
    with _compat.context(equation.origin):
        if node.kind == "branch":
            branches = [lambda *args, body=body: run(body, args) for body in node.bodies]
            return lax.switch(inputs[0], branches, *inputs[1:])
        (body,) = node.bodies
        if node.kind == "checkpoint":
            again = jax.checkpoint(
                lambda *args: run(body, args), prevent_cse=params["prevent_cse"], policy=params["policy"]
            )
            return again(*inputs)
        n_consts, n_carry = _compat.scan_counts(equation.origin)
        consts, carry, scanned = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]

        def step(carry: list, slices: list) -> tuple[list, list]:
            outputs = run(body, [*consts, *carry, *slices])
            return outputs[:n_carry], outputs[n_carry:]

        names = ("length", "reverse", "unroll")
        final, stacked = lax.scan(step, carry, scanned, **{name: params[name] for name in names})
        return [*final, *stacked]
