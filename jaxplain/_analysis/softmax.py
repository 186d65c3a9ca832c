"""Softmax and its logarithms, found by the function that they compute, however it is written.

For example, the equations of `jax.nn.softmax(u)` are recognized like this:

    m = reduce_max u; s = stop_gradient m; d = sub u s      the shift, inside
    e = exp d                                               the exponential that the search starts from
    t = reduce_sum e; b = broadcast_in_dim t                its own sum, back at every element of the group
    p = div e b                                             the softmax of u
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from jax import lax

from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity
from jaxplain._analysis.intervals import Intervals
from jaxplain._ir.graph import Axes, Equation, Graph, Value, broadcast_axes, equations_inside, moved_axes, varying_axes
from jaxplain._ir.primitives import Trait, having

Activities = dict[Value, Activity]
Users = dict[Value, list[Equation]]
SMALL = 1e-2  # the largest literal that may be the ε of a statistic
_CASTS = having(Trait.CAST)
_SPREADS = having(Trait.FORM) | _CASTS | {lax.gather_p}
_GUARDS = frozenset({lax.abs_p, lax.max_p, lax.add_p})  # of a sum, against zero
_MASKS = frozenset({lax.select_n_p, lax.mul_p})


class Group(NamedTuple):
    """How a softmax sums over its groups: the equations from `start` to the sum, broadcast back over the group."""

    start: Value
    equations: tuple[Equation, ...]


class Softmax(NamedTuple):
    """A function of `root` along an axis or over segments. `kind` is "softmax", "log_softmax" or "logsumexp"."""

    kind: str
    root: Value
    output: Value
    equations: frozenset[Equation]
    group: Group


def softmaxes(
    graph: Graph, activity: Activities, intervals: Intervals, claimed: Collection[Equation] = ()
) -> list[Softmax]:
    """Every exponential whose own sum divides it, or goes into a logarithm. Includes the shift, but not masks."""
    users = graph.users()
    found: list[Softmax] = []
    taken = set(claimed)
    for equation in graph.equations:
        if equation.op is lax.exp_p and equation not in taken and activity[equation.outputs[0]] is ACTIVE:
            candidates = list(_softmaxes_of(equation, users, activity, intervals))
            for softmax in _outermost(candidates, graph, users, activity):
                found.append(softmax)
                taken |= softmax.equations
    return found


def _outermost(found: list[Softmax], graph: Graph, users: Users, activity: Activities) -> list[Softmax]:
    """Of the softmaxes of one exponential, those whose outputs are read outside; none if values inside are, too."""
    inside = frozenset[Equation]().union(*(softmax.equations for softmax in found))
    outputs = {softmax.output for softmax in found}

    def escapes(value: Value) -> bool:
        return value in graph.outputs or any(
            user not in inside and activity[out] is ACTIVE for user in users.get(value, []) for out in user.outputs
        )

    if any(escapes(v) for equation in inside for v in equation.outputs if v not in outputs and activity[v] is ACTIVE):
        return []
    return [softmax for softmax in found if escapes(softmax.output)]


def _softmaxes_of(exponential: Equation, users: Users, activity: Activities, intervals: Intervals) -> Iterator[Softmax]:
    weights = dict(_reachable(exponential.outputs[0], users, _CASTS | _MASKS, activity))
    for weight in weights:
        for total in users.get(weight, []):
            if total.op in (lax.reduce_sum_p, lax.scatter_add_p) and total.inputs[-1] is weight:
                yield from _Sum(exponential, weights, weight, total, users, activity, intervals).softmaxes()


class _Sum:
    """One sum (`total`) of an exponential, or of a masked exponential (`weight`), and the uses of that sum.

    A `chain` is the sequence of equations from the sum to one of its uses. In the example of this module, `weight` is
    e, `total` is reduce_sum, the only chain is (broadcast_in_dim,), and its end is div. Written as e * (1 / t), the
    same softmax has the chain (div 1 t, broadcast_in_dim) and ends with mul. In log_softmax, the chain (log,
    broadcast_in_dim) ends with the sub that takes log t from d.
    """

    def __init__(
        self,
        exponential: Equation,
        weights: dict[Value, tuple[Equation, ...]],
        weight: Value,
        total: Equation,
        users: Users,
        activity: Activities,
        intervals: Intervals,
    ):
        self._intervals = intervals
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
        for denominator, chain in _reachable(self._total.outputs[0], self._users, _SPREADS | _GUARDS, self._activity):
            for end in self._users.get(denominator, []) if all(map(self._is_guard, chain)) else ():
                if end.op is lax.log_p:
                    yield from self._logarithms(end, chain)
                elif end.op is lax.div_p and end.inputs[1] is denominator and end.inputs[0] in self._weights:
                    yield from self._quotients(end, end.inputs[0], chain)
                elif _is_reciprocal(end, denominator, self._activity):
                    for factor, on in _reachable(end.outputs[0], self._users, _SPREADS):
                        for last in self._users.get(factor, []):
                            for other in last.inputs if last.op is lax.mul_p else ():
                                yield from self._quotients(last, other, (*chain, end, *on))

    def _is_guard(self, equation: Equation) -> bool:
        """Whether an equation leaves the derivative that of a softmax: small numbers that keep the sum from zero.

        One more term in the sum is allowed, too (exp(x) / (1 + Σ exp(x))), if the shift has no derivative.
        """
        if equation.op not in (lax.add_p, lax.max_p):
            return True
        numbers = [self._intervals[v] for v in equation.inputs if self._activity[v] is CONSTANT]
        is_small = all(low == high and abs(low) <= SMALL for low, high in numbers)
        is_held = self._shift is None or self._activity[self._shift.value] is not ACTIVE
        return is_small or (equation.op is lax.add_p and is_held)

    def _found(self, kind: str, end: Equation, chain: Sequence[Equation], *more: Equation) -> Softmax:
        whole = frozenset({*self._start, *chain, *more, end})
        return Softmax(kind, self._root, end.outputs[0], whole, Group(self._weight, (self._total, *chain)))

    def _quotients(self, end: Equation, numerator: Value, chain: Sequence[Equation]) -> Iterator[Softmax]:
        """exp(x) divided by its sum, if both went through the same masks."""
        same = numerator in self._weights and self._masks(numerator) == self._masks(self._weight)
        if same and _returns_to_group(self._total, chain, self._weight):
            yield self._found("softmax", end, chain, *self._weights[numerator])

    def _masks(self, value: Value) -> set[Equation]:
        """The masks after the exponential, except one that has already put −∞ before it."""
        source = self._root.source
        before = source.inputs[0] if source and source.op is lax.select_n_p else None
        return {
            e
            for e in self._weights[value]
            if e.op not in _CASTS and not (e.op is lax.select_n_p and e.inputs[0] is before)
        }

    def _logarithms(self, log: Equation, chain: Sequence[Equation]) -> Iterator[Softmax]:
        """The logarithm of the sum, without and with the shift added back, and differences from it."""
        yield self._found("logsumexp", log, chain)
        yield from self._differences(self._shifted, log, chain)
        for value, on in _reachable(log.outputs[0], self._users, _SPREADS):
            for add in _unshifting(value, self._shift, self._users):
                yield self._found("logsumexp", add, (*chain, log, *on))
                yield from self._differences(self._root, add, (*chain, log, *on))

    def _differences(self, minuend: Value, log: Equation, chain: Sequence[Equation]) -> Iterator[Softmax]:
        """x − logsumexp(x), and the exponential of that."""
        for value, on in _reachable(log.outputs[0], self._users, _SPREADS):
            path = (*chain, log, *on)
            for last in self._users.get(value, []) if _returns_to_group(self._total, path, self._weight) else ():
                if last.op is lax.sub_p and last.inputs == (minuend, value):
                    yield self._found("log_softmax", last, path)
                    for moved, cast in _reachable(last.outputs[0], self._users, _CASTS):
                        for end in (e for e in self._users.get(moved, []) if e.op is lax.exp_p):
                            yield self._found("softmax", end, path, last, *cast)


class _Shift(NamedTuple):
    """A stabilizing shift before an exponential, the same for all elements of a group."""

    root: Value
    value: Value
    equations: tuple[Equation, ...]


def _shift(shifted: Value, total: Equation, activity: Activities) -> _Shift | None:
    equation = shifted.source
    if equation is None or equation.op is not lax.sub_p:
        return None
    root, value = equation.inputs
    if activity[value] is ACTIVE:
        inside = _own_maximum(root, value, activity)
        return None if inside is None else _Shift(root, value, (equation, *inside))
    if activity[root] is not ACTIVE:
        return None
    if total.op is lax.reduce_sum_p:
        is_common = varying_axes(value).isdisjoint(total.params["axes"])
    else:
        unmoved = _unmoved(value, _SPREADS - {lax.gather_p})
        source = unmoved.source
        is_gathered = source is not None and source.op is lax.gather_p
        is_common = unmoved.aval.size == 1 or (
            source is not None and is_gathered and _segments(source.inputs[1]) is _segments(total.inputs[1])
        )
    return _Shift(root, value, (equation,)) if is_common else None


def _own_maximum(root: Value, value: Value, activity: Activities) -> set[Equation] | None:
    """The equations from root to `value`, if `value` is the maximum of root."""
    seen: set[Equation] = set()
    while (source := value.source) is not None:
        seen.add(source)
        if source.op in (lax.reduce_max_p, lax.scatter_max_p):
            is_own = root in (source.inputs[-1], source.inputs[0])
            return {e for e in seen if activity[e.outputs[0]] is ACTIVE} if is_own else None
        varying = [v for v in source.inputs if activity[v] is ACTIVE]
        if source.op not in _SPREADS | {lax.max_p, lax.select_n_p, lax.pmax_p} or len(varying) != 1:
            return None
        (value,) = varying
    return None


def _unshifting(log: Value, shift: _Shift | None, users: Users) -> Iterator[Equation]:
    """The equations that add the shift back to the logarithm."""
    for equation in users.get(log, []) if shift else ():
        if equation.op is lax.add_p:
            (other, *_) = [v for v in equation.inputs if v is not log] or [log]
            if shift is not None and _unmoved(other, _SPREADS) is _unmoved(shift.value, _SPREADS):
                yield equation


def _unmoved(value: Value, moves: frozenset) -> Value:
    """The value from which a value was moved, broadcast or stopped."""
    while value.source is not None and value.source.op in moves | {lax.stop_gradient_p}:
        value = value.source.inputs[0]
    return value


def _returns_to_group(total: Equation, chain: Sequence[Equation], weight: Value) -> bool:
    """Whether a sum is broadcast back to its own elements, along the axes or to the segments that it sums over."""
    gathers = [e for e in chain if e.op is lax.gather_p]
    if total.op is not lax.reduce_sum_p:  # a sum over segments
        return len(gathers) == 1 and _segments(total.inputs[1]) is _segments(gathers[0].inputs[1])
    summed = total.params["axes"]
    axes: Axes = [axis for axis in range(len(weight.shape)) if axis not in summed]
    for equation in chain:
        if equation.op is lax.broadcast_in_dim_p:
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


def _segments(index: Value) -> Value:
    """The segment ids that an index is made of: without its casts, its form, and the care for negative numbers.

    For example, `total[ids]` gathers at reshape(convert(select_n(lt ids 0, ids, add ids n))).
    """
    while (source := index.source) is not None:
        if source.op is lax.select_n_p and len(source.inputs) == 3 and _wraps(*source.inputs[1:]):
            index = source.inputs[1]
        elif source.op in _SPREADS - {lax.gather_p} and source.outputs[0].aval.size == source.inputs[0].aval.size:
            index = source.inputs[0]
        else:
            break
    return index


def _wraps(index: Value, wrapped: Value) -> bool:
    """Whether the second value is the first plus a number, which jnp selects for negative indices."""
    source = wrapped.source
    return source is not None and source.op is lax.add_p and index in source.inputs


def _is_reciprocal(equation: Equation, value: Value, activity: Activities) -> bool:
    if equation.op is lax.integer_pow_p:
        return equation.params["y"] == -1
    return equation.op is lax.div_p and equation.inputs[1] is value and activity[equation.inputs[0]] is CONSTANT


def _reachable(
    value: Value, users: Users, moves: frozenset, activity: Activities | None = None
) -> Iterator[tuple[Value, tuple[Equation, ...]]]:
    """The value and all values made from it by `moves` alone, each with the chain of equations in between."""
    yield value, ()
    for equation in users.get(value, []):
        others = [v for v in equation.inputs if v is not value]
        # With constants only: `add` and `max` are guards against a zero sum, `select_n` is a mask.
        guard = activity is None or all(activity[v] is CONSTANT for v in others)
        if equation.op in moves and guard and _may_pass(equation, value):
            for moved, chain in _reachable(equation.outputs[0], users, moves, activity):
                yield moved, (equation, *chain)


def _may_pass(equation: Equation, value: Value) -> bool:
    if equation.op is lax.mul_p:
        return equation.outputs[0].shape == value.shape
    return value in (equation.inputs if equation.op in (lax.add_p, lax.max_p, lax.select_n_p) else equation.inputs[:1])


# Equations that may lie between the maximum and the exponential of a shift.
_SHIFTING = frozenset({lax.clamp_p, lax.convert_element_type_p, lax.neg_p, lax.select_n_p}).union(
    *map(having, (Trait.STRUCTURAL, Trait.MAXIMUM, Trait.PRODUCT))
)


def unrecognized_shifts(graph: Graph, recognized: Collection[Equation]) -> set[Equation]:
    """Finds stabilizing shifts, `exp(x - stop_gradient(max(x)))`, that are not part of a recognized softmax.

    Such a `stop_gradient` can be followed like the identity because the shift cancels. `recognized` are the equations
    of softmax nodes.
    """
    equations = list(equations_inside(graph))
    users: dict[Value, list[Equation]] = {}
    within: dict[Value, list[Value]] = {}  # the inputs of bodies that stand for a value
    for equation in equations:
        for value in equation.inputs:
            users.setdefault(value, []).append(equation)
        operands = equation.inputs[1:] if equation.has(Trait.BRANCH) else equation.inputs
        for body in equation.bodies:
            for value, inner in zip(operands, body.inputs, strict=True):
                within.setdefault(value, []).append(inner)
    maxima = {v for e in equations if e.has(Trait.MAXIMUM) for v in e.outputs}

    def reached(value: Value, through: frozenset) -> list[Value]:
        found = [value]
        for v in found:
            on = [e.outputs[0] for e in users.get(v, []) if e.op in through]
            found.extend(w for w in (*on, *within.get(v, [])) if w not in found)
        return found

    def is_behind_maximum(value: Value) -> bool:
        source = value.source
        return value in maxima or (
            source is not None and source.op in _SHIFTING and any(map(is_behind_maximum, source.inputs))
        )

    def is_shift(stop: Equation) -> bool:
        shifts = reached(stop.outputs[0], _SHIFTING)
        sums = {e for v in shifts for e in users.get(v, []) if e.has(Trait.SUM) and e not in recognized}
        exponents = (w for e in sums for w in reached(e.outputs[0], _SHIFTING))
        is_exponent = any(e.op in (lax.exp_p, lax.exp2_p, lax.expm1_p) for w in exponents for e in users.get(w, []))
        return is_exponent and (is_behind_maximum(stop.inputs[0]) or not maxima.isdisjoint(shifts))

    return {e for e in equations if e.op is lax.stop_gradient_p and is_shift(e)}
