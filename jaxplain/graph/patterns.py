"""Softmax and normalisation, found by what they compute and not by how they are spelled."""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from jaxplain.graph import tables
from jaxplain.graph.activity import ACTIVE, CONSTANT, Activity
from jaxplain.graph.bounds import Bounds
from jaxplain.graph.flat import Equation, Graph, Value

Activities = dict[Value, Activity]
Users = dict[Value, list[Equation]]
_CASTS = tables.IDENTITY | {"convert_element_type", "reduce_precision"}
_SPREADS = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "gather"}) | _CASTS
_TOTALS = frozenset({"reduce_sum", "scatter-add", "scatter_add"})
SEARCH = 60  # equations that a statistic may be away from the value it belongs to


class Softmax(NamedTuple):
    """A function of `root` along an axis, or over segments. `kind` is "softmax", its logarithm "log_softmax", or "logsumexp"."""

    kind: str
    root: Value
    output: Value
    equations: frozenset[Equation]


def softmaxes(graph: Graph, activity: Activities) -> list[Softmax]:
    """Every exponential whose own sum divides it, or goes into a logarithm. Masks stay outside, the shift is inside."""
    users = graph.users()
    found: list[Softmax] = []
    for equation in graph.equations:
        if equation.primitive == "exp" and activity[equation.outputs[0]] is ACTIVE:
            found.extend(_outermost(list(_softmaxes_of(equation, users, activity)), graph, users, activity))
    return found


def _outermost(found: list[Softmax], graph: Graph, users: Users, activity: Activities) -> list[Softmax]:
    """Those of one exponential whose outputs are read outside; none if something between is read outside too."""
    inside = frozenset[Equation]().union(*(softmax.equations for softmax in found))
    outputs = {softmax.output for softmax in found}

    def escapes(value: Value) -> bool:
        return value in graph.outputs or any(
            user not in inside and activity[out] is ACTIVE for user in users.get(value, []) for out in user.outputs
        )

    if any(escapes(v) for equation in inside for v in equation.outputs if v not in outputs and activity[v] is ACTIVE):
        return []
    return [softmax for softmax in found if escapes(softmax.output)]


def _softmaxes_of(exponential: Equation, users: Users, activity: Activities) -> Iterator[Softmax]:
    shifted = exponential.inputs[0]
    root, shift = _unshifted(shifted, activity)
    weights = dict(_moved(exponential.outputs[0], users, _CASTS | {"select_n"}, activity))
    for weight, cast in weights.items():
        for total in (e for e in users.get(weight, []) if e.primitive in _TOTALS):
            start = {exponential, *shift, *cast, total}
            for denominator, back in _moved(total.outputs[0], users, _SPREADS | {"abs", "max", "add"}, activity):
                way = {*start, *back}
                for end in users.get(denominator, []):
                    if end.primitive == "log":
                        yield Softmax("logsumexp", root, end.outputs[0], frozenset({*way, end}))
                        for log, on in _moved(end.outputs[0], users, _SPREADS):
                            for last in users.get(log, []):
                                if last.primitive == "sub" and last.inputs == (shifted, log):
                                    whole = frozenset({*way, end, *on, last})
                                    yield Softmax("log_softmax", root, last.outputs[0], whole)
                    elif end.primitive == "div" and end.inputs[1] is denominator and end.inputs[0] in weights:
                        whole = frozenset({*way, *weights[end.inputs[0]], end})
                        yield Softmax("softmax", root, end.outputs[0], whole)
                    elif _is_reciprocal(end, denominator, activity):
                        for factor, on in _moved(end.outputs[0], users, _SPREADS):
                            for last in (e for e in users.get(factor, []) if e.primitive == "mul"):
                                for other in (v for v in last.inputs if v in weights):
                                    whole = frozenset({*way, end, *on, *weights[other], last})
                                    yield Softmax("softmax", root, last.outputs[0], whole)


def _is_reciprocal(equation: Equation, value: Value, activity: Activities) -> bool:
    if equation.primitive == "integer_pow":
        return equation.params["y"] == -1
    return equation.primitive == "div" and equation.inputs[1] is value and activity[equation.inputs[0]] is CONSTANT


def _moved(
    value: Value, users: Users, moves: frozenset[str], activity: Activities | None = None
) -> Iterator[tuple[Value, tuple[Equation, ...]]]:
    """The value and all that it becomes by data movement, with the equations on the way."""
    yield value, ()
    for equation in users.get(value, []):
        others = [v for v in equation.inputs if v is not value]
        # `add` and `max` are guards against a zero sum, `select_n` is a mask: with constants only.
        guard = activity is None or all(activity[v] is CONSTANT for v in others)
        if equation.primitive in moves and guard and _is_moved(equation, value):
            for moved, way in _moved(equation.outputs[0], users, moves, activity):
                yield moved, (equation, *way)


def _is_moved(equation: Equation, value: Value) -> bool:
    return value in (equation.inputs if equation.primitive in ("add", "max", "select_n") else equation.inputs[:1])


def _unshifted(value: Value, activity: Activities) -> tuple[Value, tuple[Equation, ...]]:
    """What the exponential is taken of, before its own maximum was subtracted for safety."""
    equation = value.source
    if equation is None or equation.primitive != "sub":
        return value, ()
    root, shift = equation.inputs
    behind, seen = shift, set()
    while (source := behind.source) is not None and source.primitive not in (
        "reduce_max",
        "scatter-max",
        "scatter_max",
    ):
        if source.primitive not in _SPREADS | {"stop_gradient", "max", "select_n", "pmax"}:
            return value, ()
        seen.add(source)
        varying = [v for v in source.inputs if activity[v] is not CONSTANT and v.aval.dtype == behind.aval.dtype]
        if len(varying) != 1:
            return value, ()
        (behind,) = varying
    if source is None or root not in (source.inputs[-1], source.inputs[0]):
        return value, ()
    # Only what carries a derivative needs to be inside: a stopped maximum is dependent, and stays outside.
    inside = {e for e in {*seen, source} if activity[e.outputs[0]] is ACTIVE}
    return root, (equation, *inside)


class Normalisation(NamedTuple):
    """`equation` multiplies (or divides) a signal by a statistic of its own size: operand `factor` of it is that statistic.

    `centring` are the equations between `root` and the signal (root − mean), if the signal is centred there.
    """

    equation: Equation
    factor: int
    root: Value
    centring: tuple[Equation, ...]


def normalisations(
    graph: Graph, activity: Activities, bounds: Bounds, claimed: Collection[Equation] = ()
) -> list[Normalisation]:
    """Layer, RMS, group, instance, L1, L2 normalisation …: a signal divided by its own size along some axis.

    By degrees of homogeneity: for some value r through which both operands get all they know of the input, the signal has
    degree d in r (r → c·r multiplies it by c^d) and the other factor −d, and that factor is constant along an axis.
    """
    found = []
    for equation in graph.equations:
        if equation.primitive not in tables.PRODUCTS or equation in claimed:
            continue
        if any(activity[v] is not ACTIVE for v in equation.inputs):
            continue
        for index in (1,) if equation.primitive == "div" else (1, 0):
            factor, signal = equation.inputs[index], equation.inputs[1 - index]
            if _is_spread(factor, signal.shape, activity) and _undoes(equation, signal, factor, activity, bounds):
                root, centring = _centred(signal, activity)
                found.append(Normalisation(equation, index, root, centring))
                break
    return found


def _is_spread(factor: Value, shape: tuple[int, ...], activity: Activities) -> bool:
    """Whether a value is constant along an axis of `shape`, up to constant factors (a scale may be multiplied in first)."""
    if len(factor.shape) != len(shape):  # one of them is a scalar
        return factor.shape == ()
    if any(a == 1 and b > 1 for a, b in zip(factor.shape, shape, strict=True)):
        return True
    equation = factor.source
    if equation is None:
        return False
    if equation.primitive == "broadcast_in_dim" and not equation.is_move:
        operand, dimensions = equation.inputs[0], equation.params["broadcast_dimensions"]
        kept = {axis for axis, n in zip(dimensions, operand.shape, strict=True) if n == factor.shape[axis]}
        return any(n > 1 for axis, n in enumerate(factor.shape) if axis not in kept)
    active = [value for value in equation.inputs if activity[value] is ACTIVE]
    if len(active) != 1:
        return False
    if equation.is_move:  # group norm: spread within groups, then reshaped
        return _is_spread(active[0], active[0].shape, activity)
    return equation.primitive in tables.ELEMENTWISE and _is_spread(active[0], shape, activity)


def _undoes(equation: Equation, signal: Value, factor: Value, activity: Activities, bounds: Bounds) -> bool:
    sign = 1 if equation.primitive == "div" else -1
    for root in _ancestors(factor, activity):
        degrees = _Degrees(root, activity, bounds)
        of_signal, of_factor = degrees[signal], degrees[factor]
        if of_signal and of_factor == sign * of_signal:
            return True
    return False


def _ancestors(value: Value, activity: Activities) -> list[Value]:
    """Active values behind this one, the nearest first."""
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


def _centred(signal: Value, activity: Activities) -> tuple[Value, tuple[Equation, ...]]:
    """The value whose mean was subtracted to make `signal`, and the equations that did it; else the signal itself."""
    scaling, value = [], signal
    while (source := value.source) is not None and source.primitive in _CASTS | {"mul", "div"}:
        active = [v for v in source.inputs if activity[v] is ACTIVE]
        if len(active) != 1 or (source.primitive == "div" and active[0] is source.inputs[1]):
            break
        scaling.append(source)
        (value,) = active
    equation = value.source
    if equation is None or equation.primitive != "sub":
        return signal, ()
    root, mean = equation.inputs
    way = []
    while mean is not root:
        source = mean.source
        if source is None or source.primitive not in _SPREADS | {"reduce_sum", "div", "mul", "dot_general"}:
            return signal, ()
        way.append(source)
        active = [v for v in source.inputs if activity[v] is ACTIVE]
        if len(active) != 1:
            return signal, ()
        (mean,) = active
    is_mean = any(e.primitive in ("reduce_sum", "dot_general") for e in way)
    return (root, (*scaling, equation, *way)) if is_mean else (signal, ())


_POWERS: dict[str, Callable[[Equation], float]] = {
    "square": lambda _: 2.0,
    "integer_pow": lambda e: e.params["y"],
    "sqrt": lambda _: 0.5,
    "rsqrt": lambda _: -0.5,
}
_KEEPING = (
    tables.STRUCTURAL | tables.CONTRACTION | tables.MAXIMUM | _CASTS | {"neg", "abs", "select_n", "stop_gradient"}
) - {"dot_general", "conv_general_dilated", "ragged_dot_general"}


class _Degrees:
    """Degrees of homogeneity in `root`: 0 for constants; None for what has none, or knows more of x than root."""

    def __init__(self, root: Value, activity: Activities, bounds: Bounds):
        self._root = root
        self._activity = activity
        self._bounds = bounds
        self._found: dict[Value, float | None] = {root: 1.0}

    def __getitem__(self, value: Value) -> float | None:
        if value not in self._found:
            self._found[value] = None  # what fails once fails always
            self._found[value] = 0.0 if self._activity[value] is CONSTANT else self._of(value)
        return self._found[value]

    def _of(self, value: Value) -> float | None:
        equation = value.source
        if equation is None or equation.bodies:
            return None
        name = equation.primitive
        inputs = [self[v] for v in equation.inputs]
        if any(d is None for d in inputs):
            return None
        known = [d for d in inputs if d is not None]
        varying = {d for d, v in zip(known, equation.inputs, strict=True) if self._activity[v] is not CONSTANT}
        if name in ("mul", "dot_general", "conv_general_dilated"):
            return sum(known)
        if name == "div":
            return known[0] - known[1]
        if name in _POWERS:
            return _POWERS[name](equation) * known[0]
        if len(varying) != 1:
            return None
        if name in tables.SUMS:
            return varying.pop() if all(map(self._is_negligible, equation.inputs, [value] * 2)) else None
        return varying.pop() if name in _KEEPING else None

    def _is_negligible(self, term: Value, total: Value) -> bool:
        """Whether a constant term leaves the degree: a zero, or the ε of a statistic. Anything else is a bias."""
        if self._activity[term] is not CONSTANT or self._bounds[term] == (0.0, 0.0):
            return True
        is_statistic = total.aval.size < self._root.aval.size or _is_spread(total, total.shape, self._activity)
        return term.aval.size == 1 and is_statistic
