"""The affine head of a score: everything before its first nonlinearity, which methods on straight paths evaluate once."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain._analysis.activity import ACTIVE, CONSTANT, activities
from jaxplain._engine.node_view import run_equation
from jaxplain._ir import primitives
from jaxplain._ir.graph import Equation, Graph, Value, flatten
from jaxplain._ir.program import Program

_SELECTING = frozenset({"sort", "top_k", "scatter", "select_and_gather_add", "optimization_barrier"})
_MOVES = (primitives.STRUCTURAL - _SELECTING) | {"select_n"}
# Measured: products per element of the head's output from which evaluating it once beats walking along its output (a dense layer
# of 784 inputs: 2.8 times faster; a 3×3 convolution of one channel: 0.8 times).
WORTH = 64
_LINEAR = _MOVES | primitives.SUMS | primitives.CONTRACTION | {"neg"}


class Head(NamedTuple):
    """A score as tail(head(x)), with an affine head.

    Attributes:
        head: explained leaves -> values.
        tail: values -> score.
        pullback: (explained leaves, cotangents of the values) -> cotangents of the leaves.
    """

    head: Program
    tail: Program
    pullback: Program


def affine_head(program: Program, leaves: Sequence[jax.Array]) -> Head | None:
    """The head of a staged score; None where evaluating it at every node costs little."""
    # Calls with a derivative of their own stay whole: the tail is differentiated.
    graph = flatten(program.closed, opens=lambda *_: False)
    _drop_unused(graph)
    before, cut = _affine(graph)
    if not before or sum(map(_products, before)) < WORTH * sum(value.aval.size for value in cut):
        return None
    if any(value.aval.dtype not in (jnp.float32, jnp.float64) for value in (*graph.inputs, *cut)):
        return None  # a path between low-precision values would be one in low precision

    def run(starts: Sequence[Value], given: Sequence[Any], ends: Sequence[Value]) -> tuple:
        """Evaluate what lies between; equations that nothing given reaches are constants, and run on both sides."""
        values = {**graph.constants, **dict(zip(starts, given, strict=True))}
        for e in graph.equations:
            if all(v in values for v in e.inputs) and not all(v in values for v in e.outputs):
                outputs = run_equation(e, [values[v] for v in e.inputs])
                values.update((v, out) for v, out in zip(e.outputs, outputs, strict=True) if v not in values)
        return tuple(values[v] for v in ends)

    def encode(x: Any) -> tuple:
        return run(graph.inputs, x, cut)

    leaves = tuple(leaves)
    head = Program(program.method, encode, leaves)
    tail = Program(program.method, lambda h: run(cut, h, graph.outputs)[0], head.out_shape)
    pullback = Program(program.method, lambda x, g: jax.vjp(encode, x)[1](g)[0], leaves, head.out_shape)
    return Head(head, tail, pullback)


def _products(equation: Equation) -> int:
    """How many multiplications a contraction makes."""
    if equation.primitive not in primitives.WEIGHTED:
        return 0
    (output,), (left, kernel, *_) = equation.outputs, equation.inputs
    if equation.primitive == "conv_general_dilated":
        return output.aval.size * kernel.aval.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    if equation.primitive == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return output.aval.size * math.prod(left.shape[axis] for axis in contracted)
    return output.aval.size


def _drop_unused(graph: Graph) -> None:
    needed = set(graph.outputs)
    kept = []
    for equation in reversed(graph.equations):
        if needed.intersection(equation.outputs):
            kept.append(equation)
            needed.update(equation.inputs)
    graph.equations = kept[::-1]


def _affine(graph: Graph) -> tuple[list[Equation], list[Value]]:
    """The equations that are affine in the inputs, and those of their values that something else reads."""
    activity = activities(graph, [ACTIVE] * len(graph.inputs))
    affine = {value for value in graph.inputs if activity[value] is ACTIVE}
    before = []
    for equation in graph.equations:
        active = [v for v in equation.inputs if activity[v] is ACTIVE]
        others = [v for v in equation.inputs if activity[v] is not ACTIVE]
        known = affine.issuperset(active) and all(activity[v] is CONSTANT for v in others)
        if active and known and is_affine_in(equation, active):
            before.append(equation)
            affine.update(equation.outputs)
    inside = set(before)
    cut: dict[Value, None] = {}
    for equation in graph.equations:
        if equation not in inside:
            cut.update((v, None) for v in equation.inputs if v in affine)
    cut.update((v, None) for v in graph.outputs if v in affine)
    return before, list(cut)


def is_affine_in(equation: Equation, active: Sequence[Value]) -> bool:
    """Whether what an equation makes is affine in its active operands, the others held."""
    name = equation.primitive
    if name in primitives.PRODUCTS:
        return len(active) == 1 and (name == "mul" or active[0] is equation.inputs[0])
    if name in primitives.WEIGHTED:
        return len(active) == 1
    return name in _LINEAR
