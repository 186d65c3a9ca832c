"""Softmax and normalization, found by what they compute and not by how they are spelled; and patterns of the user's own."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import NamedTuple

from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity
from jaxplain._analysis.intervals import Bounds
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir import primitives
from jaxplain._ir.graph import Axes, Equation, Graph, Value, broadcast_axes, moved_axes, varying_axes

Activities = dict[Value, Activity]
Users = dict[Value, list[Equation]]
_CASTS = primitives.IDENTITY | {"convert_element_type", "reduce_precision"}
_SPREADS = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "gather"}) | _CASTS
_TOTALS = frozenset({"reduce_sum", "scatter-add", "scatter_add"})
_GUARDS = frozenset({"abs", "max", "add"})  # of a sum, against zero
SMALL = 1e-2  # a number in the program's text that may be the ε of a statistic
SEARCH = 60  # equations that a statistic may be away from the value it belongs to


class Pattern(NamedTuple):
    """What a user teaches the analysis: stretches of a program that are one node, of a kind of the user's own.

    Attributes:
        kind: the kind of these nodes, for a composite to select by and a rule to be made for.
        find: `find(graph, varies)` yields the stretches, each an iterable of equations of `graph`; `varies(value)` tells whether a
            value depends on the explained input.
    """

    kind: str
    find: Callable[[Graph, Callable[[Value], bool]], Iterable[Iterable[Equation]]]


def scope(glob: str, kind: str) -> Pattern:
    """The pattern "everything that one layer does": equations under a name scope, as in `scope("block_*/attention", "attention")`."""

    def prefix(equation: Equation) -> str | None:
        parts = equation.path.split("/")
        names = ("/".join(parts[: i + 1]) for i in range(len(parts)))
        return next((name for name in names if fnmatchcase(name, glob)), None)

    def find(graph: Graph, varies: Callable[[Value], bool]) -> Iterator[list[Equation]]:
        # A layer that is applied twice is two stretches, if something lies between.
        varying = (e for e in graph.equations if any(map(varies, e.outputs)))
        yield from (list(run) for name, run in groupby(varying, prefix) if name is not None)

    return Pattern(kind, find)


class Region(NamedTuple):
    """A stretch of a program that a pattern found."""

    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    equations: frozenset[Equation]


def found_regions(graph: Graph, activity: Activities, patterns: Sequence[Pattern]) -> list[Region]:
    """What the patterns find, the later ones first; a stretch of one that overlaps one before is left out."""
    found: list[Region] = []
    claimed: set[Equation] = set()
    for pattern in reversed(patterns):
        for equations in map(frozenset, pattern.find(graph, lambda value: activity[value] is not CONSTANT)):
            if equations and claimed.isdisjoint(equations):
                found.append(_region(pattern.kind, equations, graph, activity))
                claimed.update(equations)
    return found


def _region(kind: str, equations: frozenset[Equation], graph: Graph, activity: Activities) -> Region:
    made = dict.fromkeys(v for e in graph.equations if e in equations for v in e.outputs)
    read: dict[Value, None] = {}
    left = set(graph.outputs)
    waiting = len(equations)
    for equation in graph.equations:
        if equation in equations:
            waiting -= 1
            read.update(dict.fromkeys(v for v in equation.inputs if v not in made and activity[v] is ACTIVE))
        elif not made.keys().isdisjoint(equation.inputs):
            left.update(equation.inputs)
            if waiting:
                raise SettingError(
                    explain_error(
                        f"the pattern for {kind!r} found a stretch of the program that is not one unit.",
                        where=equation.line,
                        got=f"{equation.primitive}, which is not in it, reads a result before the stretch is complete",
                        fix="yield stretches that nothing outside reads before their last equation",
                    )
                )
    return Region(kind, tuple(read), tuple(v for v in made if v in left and activity[v] is ACTIVE), equations)


class Group(NamedTuple):
    """How a softmax sums over its groups: the equations from `start` to the sum, back at every element of the group."""

    start: Value
    equations: tuple[Equation, ...]


class Softmax(NamedTuple):
    """A function of `root` along an axis, or over segments. `kind` is "softmax", its logarithm "log_softmax", or "logsumexp"."""

    kind: str
    root: Value
    output: Value
    equations: frozenset[Equation]
    group: Group


def softmaxes(graph: Graph, activity: Activities, bounds: Bounds, claimed: Collection[Equation] = ()) -> list[Softmax]:
    """Every exponential whose own sum divides it, or goes into a logarithm. Masks stay outside, the shift is inside."""
    users = graph.users()
    found: list[Softmax] = []
    taken = set(claimed)
    for equation in graph.equations:
        if equation.primitive == "exp" and equation not in taken and activity[equation.outputs[0]] is ACTIVE:
            candidates = list(_softmaxes_of(equation, users, activity, bounds))
            for softmax in _outermost(candidates, graph, users, activity):
                found.append(softmax)
                taken |= softmax.equations
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


def _softmaxes_of(exponential: Equation, users: Users, activity: Activities, bounds: Bounds) -> Iterator[Softmax]:
    weights = dict(_moved(exponential.outputs[0], users, _CASTS | {"select_n", "mul"}, activity))
    for weight in weights:
        for total in users.get(weight, []):
            if total.primitive in _TOTALS and total.inputs[-1] is weight:
                yield from _Sum(exponential, weights, weight, total, users, activity, bounds).softmaxes()


class _Sum:
    """One sum of an exponential, or of what masks leave of it: the `weight`; and what becomes of the sum.

    A `way` are the equations that the sum takes to where it is used.
    """

    def __init__(
        self,
        exponential: Equation,
        weights: dict[Value, tuple[Equation, ...]],
        weight: Value,
        total: Equation,
        users: Users,
        activity: Activities,
        bounds: Bounds,
    ):
        self._bounds = bounds
        self._shifted = exponential.inputs[0]
        self._shift = _shift(self._shifted, total, activity)
        self._root = self._shifted if self._shift is None else self._shift.root
        self._weights = weights
        self._weight = weight
        self._total = total
        self._users = users
        self._activity = activity
        shifting = self._shift.equations if self._shift else ()
        self._start = {exponential, *weights[weight], total, *shifting}

    def softmaxes(self) -> Iterator[Softmax]:
        for denominator, way in _moved(self._total.outputs[0], self._users, _SPREADS | _GUARDS, self._activity):
            for end in self._users.get(denominator, []) if all(map(self._is_guard, way)) else ():
                if end.primitive == "log":
                    yield from self._logarithms(end, way)
                elif end.primitive == "div" and end.inputs[1] is denominator and end.inputs[0] in self._weights:
                    yield from self._quotients(end, end.inputs[0], way)
                elif _is_reciprocal(end, denominator, self._activity):
                    for factor, on in _moved(end.outputs[0], self._users, _SPREADS):
                        for last in self._users.get(factor, []):
                            for other in last.inputs if last.primitive == "mul" else ():
                                yield from self._quotients(last, other, (*way, end, *on))

    def _is_guard(self, equation: Equation) -> bool:
        """Whether what an equation does to the sum leaves the derivative of a softmax: small numbers against zero.

        One more term in the sum does, too (exp(x) / (1 + Σ exp(x))), if the shift has no derivative.
        """
        if equation.primitive not in ("add", "max"):
            return True
        numbers = [self._bounds[v] for v in equation.inputs if self._activity[v] is CONSTANT]
        is_small = all(low == high and abs(low) <= SMALL for low, high in numbers)
        is_held = self._shift is None or self._activity[self._shift.value] is not ACTIVE
        return is_small or (equation.primitive == "add" and is_held)

    def _found(self, kind: str, end: Equation, way: Sequence[Equation], *more: Equation) -> Softmax:
        whole = frozenset({*self._start, *way, *more, end})
        return Softmax(kind, self._root, end.outputs[0], whole, Group(self._weight, (self._total, *way)))

    def _quotients(self, end: Equation, numerator: Value, way: Sequence[Equation]) -> Iterator[Softmax]:
        """exp(x) over its sum, if both went through the same masks."""
        same = numerator in self._weights and self._masks(numerator) == self._masks(self._weight)
        if same and _comes_back(self._total, way, self._weight):
            yield self._found("softmax", end, way, *self._weights[numerator])

    def _masks(self, value: Value) -> set[Equation]:
        """What was masked after the exponential; not what is −∞ before it already."""
        source = self._root.source
        before = source.inputs[0] if source and source.primitive == "select_n" else None
        return {
            e
            for e in self._weights[value]
            if e.primitive not in _CASTS and not (e.primitive == "select_n" and e.inputs[0] is before)
        }

    def _logarithms(self, log: Equation, way: Sequence[Equation]) -> Iterator[Softmax]:
        """The logarithm of the sum, the same with the shift added again, and what they are subtracted from."""
        yield self._found("logsumexp", log, way)
        yield from self._differences(self._shifted, log, way)
        for value, on in _moved(log.outputs[0], self._users, _SPREADS):
            for add in _unshifting(value, self._shift, self._users):
                yield self._found("logsumexp", add, (*way, log, *on))
                yield from self._differences(self._root, add, (*way, log, *on))

    def _differences(self, minuend: Value, log: Equation, way: Sequence[Equation]) -> Iterator[Softmax]:
        """x − logsumexp(x), and the exponential of that."""
        for value, on in _moved(log.outputs[0], self._users, _SPREADS):
            path = (*way, log, *on)
            for last in self._users.get(value, []) if _comes_back(self._total, path, self._weight) else ():
                if last.primitive == "sub" and last.inputs == (minuend, value):
                    yield self._found("log_softmax", last, path)
                    for moved, cast in _moved(last.outputs[0], self._users, _CASTS):
                        for end in (e for e in self._users.get(moved, []) if e.primitive == "exp"):
                            yield self._found("softmax", end, path, last, *cast)


class _Shift(NamedTuple):
    """What is subtracted before an exponential, for safety: the same for all of a group."""

    root: Value
    value: Value
    equations: tuple[Equation, ...]


def _shift(shifted: Value, total: Equation, activity: Activities) -> _Shift | None:
    equation = shifted.source
    if equation is None or equation.primitive != "sub":
        return None
    root, value = equation.inputs
    if activity[value] is ACTIVE:
        inside = _own_maximum(root, value, activity)
        return None if inside is None else _Shift(root, value, (equation, *inside))
    if activity[root] is not ACTIVE:
        return None
    if total.primitive == "reduce_sum":
        is_common = varying_axes(value).isdisjoint(total.params["axes"])
    else:
        stem = _stem(value, _SPREADS - {"gather"})
        source = stem.source
        is_gathered = source is not None and source.primitive == "gather"
        is_common = stem.aval.size == 1 or (
            source is not None and is_gathered and _origins(source.inputs[1]) == _origins(total.inputs[1])
        )
    return _Shift(root, value, (equation,)) if is_common else None


def _own_maximum(root: Value, value: Value, activity: Activities) -> set[Equation] | None:
    """The equations from root to its own maximum, if that is what `value` is."""
    seen: set[Equation] = set()
    while (source := value.source) is not None:
        seen.add(source)
        if source.primitive in ("reduce_max", "scatter-max", "scatter_max"):
            is_own = root in (source.inputs[-1], source.inputs[0])
            return {e for e in seen if activity[e.outputs[0]] is ACTIVE} if is_own else None
        varying = [v for v in source.inputs if activity[v] is ACTIVE]
        if source.primitive not in _SPREADS | {"max", "select_n", "pmax"} or len(varying) != 1:
            return None
        (value,) = varying
    return None


def _unshifting(log: Value, shift: _Shift | None, users: Users) -> Iterator[Equation]:
    """Where the shift is added to the logarithm again."""
    for equation in users.get(log, []) if shift else ():
        if equation.primitive == "add":
            (other, *_) = [v for v in equation.inputs if v is not log] or [log]
            if shift is not None and _stem(other, _SPREADS) is _stem(shift.value, _SPREADS):
                yield equation


def _stem(value: Value, moves: frozenset[str]) -> Value:
    """What a value was before it was moved, spread or stopped."""
    while value.source is not None and value.source.primitive in moves | {"stop_gradient"}:
        value = value.source.inputs[0]
    return value


def _comes_back(total: Equation, way: Sequence[Equation], weight: Value) -> bool:
    """Whether a sum goes back to the very elements that it is made of: along the axes, or to the segments, of the sum."""
    gathers = [e for e in way if e.primitive == "gather"]
    if total.primitive != "reduce_sum":  # a sum over segments
        return len(gathers) == 1 and _origins(total.inputs[1]) == _origins(gathers[0].inputs[1])
    summed = total.params["axes"]
    axes: Axes = [axis for axis in range(len(weight.shape)) if axis not in summed]
    for equation in way:
        if equation.primitive == "broadcast_in_dim":
            axes = broadcast_axes(equation, axes)
        elif equation.is_move:
            moved = moved_axes(equation, axes)
            if moved is None:
                return False
            axes = moved
        elif equation in gathers:
            return False
    if not axes:  # one number
        return all(axis in summed for axis, n in enumerate(weight.shape) if n > 1)
    want = [None if axis in summed else axis for axis in range(len(weight.shape))]
    return len(axes) == len(want) and all(n == 1 or a == b for n, a, b in zip(weight.shape, axes, want, strict=True))


def _origins(value: Value) -> set[Value]:
    """The arrays that an index is computed from."""
    found, front = set(), [value]
    while front:
        current = front.pop()
        if current.source is not None and not current.source.bodies:
            front.extend(current.source.inputs)
        elif current.aval.size > 1 or current.source is not None:
            found.add(current)
    return found


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
    if equation.primitive == "mul":
        return equation.outputs[0].shape == value.shape
    return value in (equation.inputs if equation.primitive in ("add", "max", "select_n") else equation.inputs[:1])


class Normalization(NamedTuple):
    """`equation` multiplies (or divides) a signal by a statistic of its own size: operand `factor` of it is that statistic.

    `centering` are the equations between `root` and the signal (root − mean), if the signal is centered there.
    """

    equation: Equation
    factor: int
    root: Value
    centering: tuple[Equation, ...]


def normalizations(
    graph: Graph, activity: Activities, bounds: Bounds, claimed: Collection[Equation] = ()
) -> list[Normalization]:
    """Layer, RMS, group, instance, L1, L2 normalization …: a signal divided by its own size along some axis.

    By degrees of homogeneity: for some value r through which both operands get all they know of the input, the signal has
    degree d in r (r → c·r multiplies it by c^d) and the other factor −d, and that factor is constant along an axis.
    """
    found = []
    order = {value: index for index, equation in enumerate(graph.equations) for value in equation.outputs}
    for equation in graph.equations:
        if equation.primitive not in primitives.PRODUCTS or equation in claimed:
            continue
        if any(activity[v] is not ACTIVE for v in equation.inputs):
            continue
        for index in (1,) if equation.primitive == "div" else (1, 0):
            factor, signal = equation.inputs[index], equation.inputs[1 - index]
            is_size = factor.shape == signal.shape == () and bounds[factor][0] >= 0  # a number over a norm: cosine
            if (is_size or _is_spread(factor, signal.shape, activity)) and _undoes(
                equation, signal, factor, activity, bounds, order
            ):
                root, centering = _centered(signal, activity)
                found.append(Normalization(equation, index, root, centering))
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
    return equation.primitive in primitives.ELEMENTWISE and _is_spread(active[0], shape, activity)


def _undoes(
    equation: Equation, signal: Value, factor: Value, activity: Activities, bounds: Bounds, order: dict[Value, int]
) -> bool:
    sign = 1 if equation.primitive == "div" else -1
    for root in _ancestors(factor, activity):
        degrees = _Degrees(root, activity, bounds, order)
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


def _centered(signal: Value, activity: Activities) -> tuple[Value, tuple[Equation, ...]]:
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
        if source is None or source.primitive not in _SPREADS | {"reduce_sum", "div", "mul", "dot_general", "select_n"}:
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
    primitives.STRUCTURAL
    | primitives.CONTRACTION
    | primitives.MAXIMUM
    | _CASTS
    | {"neg", "abs", "select_n", "stop_gradient"}
) - {"dot_general", "conv_general_dilated", "ragged_dot_general"}


class _Degrees:
    """Degrees of homogeneity in `root`: 0 for constants; None for what has none, or knows more of x than root."""

    def __init__(self, root: Value, activity: Activities, bounds: Bounds, order: dict[Value, int]):
        self._root = root
        self._order = order
        self._activity = activity
        self._bounds = bounds
        self._found: dict[Value, float | None] = {root: 1.0}

    def __getitem__(self, value: Value) -> float | None:
        if value not in self._found:
            self._found[value] = None  # what fails once fails always
            if self._activity[value] is CONSTANT:
                self._found[value] = 0.0
            elif self._order.get(value, -1) > self._order.get(self._root, -1):  # else it knows of x in another way
                self._found[value] = self._of(value)
        return self._found[value]

    def _of(self, value: Value) -> float | None:
        equation = value.source
        if equation is None or equation.bodies:
            return None
        name = equation.primitive
        # A choice has the degree of what it chooses from, however it is made.
        operands = equation.inputs[1:] if name == "select_n" else equation.inputs
        known = []
        for operand in operands:
            if (degree := self[operand]) is None:
                return None
            known.append(degree)
        varying = {d for d, v in zip(known, operands, strict=True) if self._activity[v] is not CONSTANT}
        if name in ("mul", "dot_general", "conv_general_dilated"):
            return sum(known)
        if name == "div":
            return known[0] - known[1]
        if name == "pow":
            low, high = self._bounds[operands[1]]
            return known[0] * low if low == high and known[1] == 0 else None
        if name in _POWERS:
            return _POWERS[name](equation) * known[0]
        if len(varying) != 1:
            return None
        if name in primitives.SUMS:
            return varying.pop() if all(self._is_negligible(term, equation) for term in operands) else None
        return varying.pop() if name in _KEEPING else None

    def _is_negligible(self, term: Value, equation: Equation) -> bool:
        """Whether a term of a sum leaves the degree: active, zero, or the ε of a statistic. Anything else is a bias."""
        if self._activity[term] is not CONSTANT or self._bounds[term] == (0.0, 0.0):
            return True
        low, high = self._bounds[term]
        if low == high and math.isfinite(low):
            is_small = abs(low) <= SMALL
        else:  # a weight: the ε of a variance or a norm
            is_small = term.aval.size == 1 and all(self._bounds[v][0] >= 0 for v in equation.inputs if v is not term)
        (total,) = equation.outputs
        return is_small and (total.aval.size < self._root.aval.size or _is_spread(total, total.shape, self._activity))
