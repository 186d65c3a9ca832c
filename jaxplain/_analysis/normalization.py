"""Normalizations: a signal divided by its own size along some axis, found by degrees of homogeneity.

For example, in a layer norm without its mean, `y = x * rsqrt(mean(x * x) + eps)`, the signal x has degree 1 in x, and
its statistic has degree -1, because x * x has 2, the mean keeps it, a small eps is negligible, and rsqrt halves and
negates. The product of degrees 1 and -1 with a factor that is constant along an axis is a normalization.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

from jax import lax

from jaxplain._analysis.activity import ACTIVE, CONSTANT
from jaxplain._analysis.intervals import Intervals
from jaxplain._analysis.softmax import SMALL, Activities
from jaxplain._ir.graph import Equation, Graph, Value, varying_axes
from jaxplain._ir.primitives import Trait, having

SEARCH = 60  # equations that a statistic may be away from the value that it belongs to
_SPREADS = having(Trait.FORM) | having(Trait.CAST) | {lax.gather_p}
_OF_A_MEAN = _SPREADS | {lax.reduce_sum_p, lax.div_p, lax.mul_p, lax.dot_general_p, lax.select_n_p}


class Normalization(NamedTuple):
    """`equation` multiplies (or divides) a signal by a statistic of its own size, which is its operand number `factor`.

    `centering` are the equations between `root` and the signal (root − mean), if the signal is centered there.
    """

    equation: Equation
    factor: int
    root: Value
    centering: tuple[Equation, ...]


def normalizations(
    graph: Graph, activity: Activities, intervals: Intervals, claimed: Collection[Equation] = ()
) -> list[Normalization]:
    """Layer, RMS, group, instance, L1, L2 normalization …: a signal divided by its own size along some axis.

    The test is by degrees of homogeneity. There must be a value r through which both operands depend on the input, such
    that the signal has degree d in r (r → c·r multiplies it by c^d), and the other factor has degree −d and is constant
    along an axis.
    """
    found = []
    order = {value: index for index, equation in enumerate(graph.equations) for value in equation.outputs}
    for equation in graph.equations:
        if not equation.has(Trait.PRODUCT) or equation in claimed:
            continue
        if any(activity[v] is not ACTIVE for v in equation.inputs):
            continue
        for index in (1,) if equation.op is lax.div_p else (1, 0):
            factor, signal = equation.inputs[index], equation.inputs[1 - index]
            is_size = factor.shape == signal.shape == () and intervals[factor][0] >= 0  # a number over a norm: cosine
            if (is_size or _is_spread(factor, signal.shape, activity)) and _undoes(
                equation, signal, factor, activity, intervals, order
            ):
                root, centering = _centered(signal, activity)
                found.append(Normalization(equation, index, root, centering))
                break
    return found


def _is_spread(factor: Value, shape: tuple[int, ...], activity: Activities) -> bool:
    """Whether a value is constant along an axis of `shape`, up to constant factors, for example a learned scale."""
    equation = factor.source
    if equation is None:
        return False
    if equation.op is lax.broadcast_in_dim_p and not equation.is_move:
        operand, dimensions = equation.inputs[0], equation.params["broadcast_dimensions"]
        kept = {axis for axis, n in zip(dimensions, operand.shape, strict=True) if n == factor.shape[axis]}
        return any(n > 1 for axis, n in enumerate(factor.shape) if axis not in kept)
    active = [value for value in equation.inputs if activity[value] is ACTIVE]
    if len(active) != 1:
        return False
    if equation.is_move:  # group norm: spread within groups, then reshaped
        return _is_spread(active[0], active[0].shape, activity)
    return equation.has(Trait.ELEMENTWISE) and _is_spread(active[0], shape, activity)


def _undoes(
    equation: Equation,
    signal: Value,
    factor: Value,
    activity: Activities,
    intervals: Intervals,
    order: dict[Value, int],
) -> bool:
    sign = 1 if equation.op is lax.div_p else -1
    for root in _ancestors(factor, activity):
        degrees = _Degrees(root, activity, intervals, order)
        of_signal, of_factor = degrees[signal], degrees[factor]
        if of_signal and of_factor == sign * of_signal:
            return True
    return False


def _ancestors(value: Value, activity: Activities) -> list[Value]:
    """Active values that this one depends on, the nearest first."""
    found: dict[Value, None] = {}
    front = [value]
    while front and len(found) < SEARCH:
        current = front.pop(0)
        if current.source is None or current.source.bodies:
            continue
        for v in current.source.inputs:
            if activity[v] is ACTIVE and v not in found:
                found[v] = None
                front.append(v)
    return list(found)


def _centered(signal: Value, activity: Activities) -> tuple[Value, tuple[Equation, ...]]:
    """The value whose mean was subtracted to make `signal`, and the equations that did it; else the signal itself."""
    scaling, value = [], signal
    while (source := value.source) is not None and (source.has(Trait.CAST) or source.has(Trait.PRODUCT)):
        active = [v for v in source.inputs if activity[v] is ACTIVE]
        if len(active) != 1 or (source.op is lax.div_p and active[0] is source.inputs[1]):
            break
        scaling.append(source)
        (value,) = active
    equation = value.source
    if equation is None or equation.op is not lax.sub_p:
        return signal, ()
    root, mean = equation.inputs
    averaging = []
    while mean is not root:
        source = mean.source
        if source is None or source.op not in _OF_A_MEAN:
            return signal, ()
        averaging.append(source)
        active = [v for v in source.inputs if activity[v] is ACTIVE]
        if len(active) != 1:
            return signal, ()
        (mean,) = active
    is_mean = any(e.op in (lax.reduce_sum_p, lax.dot_general_p) for e in averaging)
    return (root, (*scaling, equation, *averaging)) if is_mean else (signal, ())


class _Degrees:
    """Degrees of homogeneity in `root`: 0 for constants, None for values that are not homogeneous in it."""

    def __init__(self, root: Value, activity: Activities, intervals: Intervals, order: dict[Value, int]):
        self._root = root
        self._order = order
        self._activity = activity
        self._intervals = intervals
        self._found: dict[Value, float | None] = {root: 1.0}

    def __getitem__(self, value: Value) -> float | None:
        if value not in self._found:
            self._found[value] = None
            if self._activity[value] is CONSTANT:
                self._found[value] = 0.0
            elif self._order.get(value, -1) > self._order.get(self._root, -1):  # otherwise it does not come from root
                self._found[value] = self._of(value)
        return self._found[value]

    def _of(self, value: Value) -> float | None:
        equation = value.source
        if equation is None or equation.bodies:
            return None
        # A `select_n` has the degree of its cases, for any mask.
        operands = equation.inputs[1:] if equation.op is lax.select_n_p else equation.inputs
        known = []
        for operand in operands:
            if (degree := self[operand]) is None:
                return None
            known.append(degree)
        varying = {d for d, v in zip(known, operands, strict=True) if self._activity[v] is not CONSTANT}
        match equation.row.degree:
            case "add":
                return sum(known)
            case "subtract":
                return known[0] - known[1]
            case "exponent":
                return self._power(equation, known)
            case float(power):
                return power * known[0]
            case "sum" if len(varying) == 1:
                return varying.pop() if all(self._is_negligible(term, equation) for term in operands) else None
            case "keep" if len(varying) == 1:
                return varying.pop()
        return None

    def _power(self, equation: Equation, known: list[float]) -> float | None:
        if equation.op is lax.integer_pow_p:
            return equation.params["y"] * known[0]
        low, high = self._intervals[equation.inputs[1]]
        return known[0] * low if low == high and known[1] == 0 else None

    def _is_negligible(self, term: Value, equation: Equation) -> bool:
        """Whether a term keeps the degree of a sum: active, zero, or the ε of a statistic. Anything else is a bias."""
        if self._activity[term] is not CONSTANT or self._intervals[term] == (0.0, 0.0):
            return True
        low, high = self._intervals[term]
        if low == high and math.isfinite(low):
            is_small = abs(low) <= SMALL
        else:  # a weight: the ε of a variance or a norm
            is_small = not varying_axes(term) and all(
                self._intervals[v][0] >= 0 for v in equation.inputs if v is not term
            )
        (total,) = equation.outputs
        return is_small and (total.aval.size < self._root.aval.size or _is_spread(total, total.shape, self._activity))
