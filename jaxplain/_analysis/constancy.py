"""Constancy of elements: what is constant is constant in any array that holds it.

    z = concatenate x c                     x changes with the explained input, c does not
    a = slice[start=1] z                    only elements of c: constant
    b = mul a w                             of a constant and w: a scale, and not a product of two active values

An array is followed element by element only from where a constant and an active value are put into one array, through
data movement and elementwise equations, and its mask is computed only where elements are picked. Beyond a sum, and in
the carry of a loop, all elements count as changing.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial, reduce
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax

from jaxplain._ir.dataflow import Domain, forward
from jaxplain._ir.graph import Equation, Graph, Value, equations_inside, is_elementwise
from jaxplain._ir.interpret import run_equation
from jaxplain._ir.primitives import Trait

_MIXING = frozenset((lax.concatenate_p, lax.pad_p, lax.dynamic_update_slice_p, lax.scatter_p, lax.stack_p))


class Mixed:
    """An array of which only some elements change with the input, as its mask tells."""

    def __init__(self, compute: Callable[[], np.ndarray]):
        self._compute = compute

    @cached_property
    def mask(self) -> np.ndarray:
        """True where an element changes with the explained input."""
        with jax.ensure_compile_time_eval():
            return self._compute()


# Whether a value changes with the explained input.
Varying: TypeAlias = bool | Mixed


def varying(graph: Graph) -> dict[Value, Varying]:
    """Whether each value of a graph and of its bodies changes with the inputs, or which of its elements do."""
    numbers = _Numbers([graph, *(body for equation in equations_inside(graph) for body in equation.bodies)])

    def transfer(equation: Equation, before: list[Varying]) -> Sequence[Varying]:
        n = len(equation.outputs)
        if not any(before):
            return [False] * n
        is_mixed = any(isinstance(fact, Mixed) for fact in before)
        is_choice = equation.op is lax.select_n_p and numbers[equation.inputs[0]] is not None
        is_copy = equation.has(Trait.STRUCTURAL) and not equation.has(Trait.REORDER)
        if is_choice or (is_copy and (is_mixed or equation.op in _MIXING)):
            return _moved(equation, before, numbers)
        if is_elementwise(equation) and is_mixed and True not in before:
            shape = equation.outputs[0].shape
            facts = [fact for fact, value in zip(before, equation.inputs, strict=True) if fact and value.shape == shape]
            if len(facts) == sum(map(bool, before)):
                return [Mixed(lambda: reduce(np.logical_or, (_mask(fact, shape) for fact in facts)))]
        return [True] * n

    domain: Domain[Varying] = Domain(
        unknown=lambda _: False,
        transfer=transfer,
        join=lambda a, b: a if a is b else bool(a) or bool(b),
        unstack=bool,
        stack=bool,
        branch=lambda index, fact: fact if index is False else True,
    )
    return forward(graph, [True] * len(graph.inputs), domain)


def _moved(equation: Equation, before: list[Varying], numbers: "_Numbers") -> Sequence[Varying]:
    """The facts of what a step copies: its own movement, applied to masks."""
    is_index = [not _is_data(equation, position) for position in range(len(before))]
    indices = [numbers[value] if i else None for value, i in zip(equation.inputs, is_index, strict=True)]
    if any(i and index is None for i, index in zip(is_index, indices, strict=True)):
        return [True] * len(equation.outputs)

    def masks() -> list[np.ndarray]:
        operands = [
            index if i else _mask(fact, value.shape)
            for i, index, fact, value in zip(is_index, indices, before, equation.inputs, strict=True)
        ]
        return [np.asarray(mask, bool) for mask in run_equation(equation, [jax.numpy.asarray(o) for o in operands])]

    together = Mixed(masks)  # type: ignore[arg-type]  # of all outputs
    facts = [Mixed(partial(lambda number: together.mask[number], number)) for number in range(len(equation.outputs))]
    if not equation.has(Trait.PICK):
        return facts
    return [fact if fact.mask.any() and not fact.mask.all() else bool(fact.mask.any()) for fact in facts]


def _is_data(equation: Equation, position: int) -> bool:
    """Whether an operand holds elements that are copied, and not the places to read or to write."""
    if equation.op in (lax.gather_p, lax.dynamic_slice_p):
        return position == 0
    if equation.op is lax.dynamic_update_slice_p:
        return position < 2
    if equation.op is lax.select_n_p:
        return position > 0
    return position != 1 if equation.op is lax.scatter_p else True


def _mask(fact: Varying, shape: tuple[int, ...]) -> np.ndarray:
    return fact.mask if isinstance(fact, Mixed) else np.full(shape, fact)


class _Numbers:
    """The integers of a program that are known when it is staged, such as places to read."""

    def __init__(self, graphs: Sequence[Graph]):
        self._known: dict[Value, Any] = {}
        for graph in graphs:
            self._known.update({v: c for v, c in graph.constants.items() if not isinstance(c, jax.core.Tracer)})

    def __getitem__(self, value: Value) -> Any | None:
        ahead = [value]
        while ahead:
            current = ahead[-1]
            source = current.source
            if current in self._known:
                ahead.pop()
            elif source is None or source.bodies or source.has(Trait.CUSTOM) or _is_float(current):
                self._known[current] = None
            elif waiting := [v for v in source.inputs if v not in self._known]:
                ahead.extend(waiting)
            else:
                operands = [self._known[v] for v in source.inputs]
                outputs = [None] * len(source.outputs)
                if all(operand is not None for operand in operands):
                    with jax.ensure_compile_time_eval():
                        outputs = run_equation(source, operands)
                self._known.update(zip(source.outputs, outputs, strict=True))
        return self._known[value]


def _is_float(value: Value) -> bool:
    return jax.numpy.issubdtype(value.aval.dtype, jax.numpy.inexact)
