"""Static bounds of values: which activations cannot be negative, which factors are gates between 0 and 1."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxplain import _compat
from jaxplain._ir import primitives
from jaxplain._ir.graph import Equation, Graph, Value, flatten

Interval = tuple[float, float]
# What comes out of these is among what goes in first.
_FIRST = (
    primitives.IDENTITY
    | primitives.MOVES
    | {"broadcast_in_dim", "convert_element_type", "dynamic_slice", "gather", "reduce_precision", "slice", "split"}
    | {"stop_gradient"}
)
ANY: Interval = (-math.inf, math.inf)


class Bounds:
    """The interval that each value of a graph lies in, from the program alone: arrays are never looked into."""

    def __init__(self, graph: Graph, inputs: Sequence[Interval] = ()):
        self._found: dict[Value, Interval] = dict.fromkeys(graph.inputs, ANY)
        self._found.update(zip(graph.inputs, inputs, strict=False))
        for value, constant in graph.constants.items():
            self._found[value] = _of_constant(constant)
        for equation in graph.equations:
            self._found.update(zip(equation.outputs, self._of(equation), strict=True))

    def __getitem__(self, value: Value) -> Interval:
        return self._found.get(value, ANY)

    def _of(self, equation: Equation) -> list[Interval]:
        inputs = [self[v] for v in equation.inputs]
        if equation.primitive in primitives.CUSTOM:
            body = flatten(next(_compat.closed_bodies(equation.origin)))
            inside = Bounds(body, inputs)
            return [inside[value] for value in body.outputs]
        return [self._of_primitive(equation, inputs)] * len(equation.outputs)

    def _of_primitive(self, equation: Equation, inputs: Sequence[Interval]) -> Interval:
        name = equation.primitive
        if name in _RULES:
            return _RULES[name](*inputs)
        if name == "integer_pow":
            return (0.0, math.inf) if equation.params["y"] % 2 == 0 else ANY
        if name == "select_n":
            return _hull(inputs[1:])
        if name in _FIRST:
            return inputs[0]
        if name in ("concatenate", "pad"):
            return _hull(inputs)
        if name in primitives.MAXIMUM:
            return _hull([inputs[0], inputs[-1]]) if name.startswith("scatter") else inputs[0]
        if name in primitives.SUMMING - {"scatter-sub"} and all(low >= 0 for low, _ in inputs):
            return 0.0, math.inf
        return ANY


def _of_constant(constant: Any) -> Interval:
    # Only the numbers of the program's text: an array may be a traced weight.
    if isinstance(constant, jax.Array) or np.ndim(constant) or not np.isrealobj(constant):
        return ANY
    return float(constant), float(constant)


def _hull(intervals: Sequence[Interval]) -> Interval:
    numbers = [(low, high) for low, high in intervals if low == low] or [ANY]  # NaN stands for "there is none"
    return min(low for low, _ in numbers), max(high for _, high in numbers)


def _corners(operation: Any, a: Interval, b: Interval) -> Interval:
    results = [operation(x, y) for x in a for y in b]
    return min(results), max(results)


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _over(a: Interval, b: Interval) -> Interval:
    if b[0] < 0:
        return ANY
    # 1/b, with 1/0 = ∞
    inverse = (0.0 if math.isinf(b[1]) else 1 / b[1] if b[1] else math.inf, math.inf if b[0] == 0 else 1 / b[0])
    return _corners(_times, a, inverse)


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


_RULES: dict[str, Any] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "add_any": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": lambda a, b: _corners(_times, a, b),
    "div": _over,
    "neg": lambda a: (-a[1], -a[0]),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "clamp": lambda low, _, high: (min(low[0], high[0]), high[1]),
    "logistic": lambda _: (0.0, 1.0),
    "tanh": lambda _: (-1.0, 1.0),
    "erf": lambda _: (-1.0, 1.0),
    "erfc": lambda _: (0.0, 2.0),
    "exp": lambda a: (_exp(a[0]), _exp(a[1])),
    "exp2": lambda _: (0.0, math.inf),
    "log1p": lambda a: (math.log1p(a[0]) if 0 <= a[0] < math.inf else -math.inf, math.inf),
    "abs": lambda a: (0.0, max(abs(a[0]), abs(a[1]))),
    "square": lambda _: (0.0, math.inf),
    "sqrt": lambda _: (0.0, math.inf),
    "rsqrt": lambda _: (0.0, math.inf),
}
