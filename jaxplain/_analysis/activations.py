"""Activations: finds stretches of elementwise equations that are one scalar function of one value.

An edge leads from an operand of an elementwise equation to its output if both have the same shape. Broadcasts, reshapes
and sums are cuts; values on their two sides count as unrelated. The *immediate dominator* of a value is the nearest
value through which every path from the input passes. The equations between the two are one function of one variable,
for example GELU, SiLU, or a leaky ReLU written with `where`:

    z = dot_general x W       dominator: none, a cut
    m = gt z 0                z
    s = mul 0.1 z             z
    y = select_n m s z        z, because both m and s lead to z: the activation {gt, mul, select_n} of z

`mul` alone would be affine, and not an activation; inside one it needs no node. If something else reads s as well, it
does need one, and `mul` is *shared*: the activation contains it, and the scale_shift node of s, too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Set
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity
from jaxplain._analysis.gain import gain
from jaxplain._analysis.intervals import Intervals
from jaxplain._ir.graph import Equation, Graph, Value, is_elementwise
from jaxplain._ir.primitives import Trait, row_of


class Flow:
    """The part of a graph that carries relevance: active operands that are not held constant and lead to an output."""

    def __init__(self, graph: Graph, activity: dict[Value, Activity], held: set[tuple[Equation, int]]):
        self.graph = graph
        self.activity = activity
        self.held = held
        self.live = {value for value in graph.outputs if activity[value] is ACTIVE}
        for equation in reversed(graph.equations):
            if self.live.intersection(equation.outputs):
                self.live.update(self.active(equation))
        self.users = {
            value: [e for e in users if self.is_live(e) and value in self.active(e)]
            for value, users in graph.users().items()
        }

    def active(self, equation: Equation) -> list[Value]:
        """The operands that carry a derivative and are not held constant, as often as they occur."""
        return [
            value
            for index, value in enumerate(equation.inputs)
            if self.activity[value] is ACTIVE and (equation, index) not in self.held
        ]

    def is_live(self, equation: Equation) -> bool:
        return not self.live.isdisjoint(equation.outputs)

    def only_user(self, value: Value) -> Equation | None:
        """The equation that alone carries the relevance of a value, if there is one."""
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and value not in self.graph.outputs else None

    def is_affine(self, equation: Equation) -> bool:
        """Whether an equation is elementwise and affine in its one active operand, of the output's shape."""
        active = self.active(equation)
        return (
            equation.has(Trait.AFFINE)
            and len(active) == 1
            and active[0].shape == equation.outputs[0].shape
            and not (equation.op is lax.div_p and active[0] is equation.inputs[1])
        )


class Segment(NamedTuple):
    """A scalar function of `root`, applied at every element."""

    root: Value
    output: Value
    equations: frozenset[Equation]


def activations(flow: Flow, claimed: set[Equation], intervals: Intervals) -> tuple[list[Segment], set[Equation]]:
    """The outermost nonlinear segments of the unclaimed equations, with adjacent ones joined, and the shared equations.

    Shared equations are affine equations inside a segment whose values are also read outside. They need nodes of their
    own besides.
    """
    dominators = _Dominators(flow, claimed)
    chosen: list[Segment] = []
    holders: dict[Equation, list[Segment]] = {}
    shared: set[Equation] = set()
    roots: set[Value] = set()

    def is_wanted(value: Value) -> bool:
        """Whether an equation outside the segments that make a value reads it."""
        source = value.source
        if source not in holders or value in flow.graph.outputs or value in roots:
            return True
        return any(all(source not in s.equations for s in holders.get(u, [])) for u in flow.users.get(value, []))

    for equation in reversed(flow.graph.equations):
        for output in equation.outputs[:1]:
            root = dominators.above.get(output)
            if output not in flow.live or root is None or not is_wanted(output):
                continue
            inside = dominators.between(root, output)
            if all(_is_transparent(e, inside, flow) for e in inside):
                if equation in holders:
                    shared.update(inside)
                    roots.add(root)
                continue
            segment = Segment(root, output, frozenset(inside))
            chosen.append(segment)
            roots.add(root)
            for e in inside:
                holders.setdefault(e, []).append(segment)
    return _Joiner(flow, {*claimed, *holders}, shared, intervals).joined(chosen), shared


def _is_transparent(equation: Equation, inside: set[Equation], flow: Flow) -> bool:
    """Whether an equation of a segment is linear: a sum, a scale, or a `select_n` whose mask comes from elsewhere."""
    if equation.op is lax.select_n_p:
        return equation.inputs[0].source not in inside
    if equation.has(Trait.PRODUCT):
        return flow.is_affine(equation) and not any(
            v.source in inside for v in equation.inputs if flow.activity[v] is not ACTIVE
        )
    return equation.has(Trait.AFFINE)


def _bends(origin: Any) -> bool:
    """Whether an equation is curved, and not made of straight pieces, as abs, max and masks are."""
    row = row_of(origin.primitive)
    if row.has_any(Trait.CUSTOM | Trait.CALL):
        return any(_bends(inner) for body in _compat.closed_bodies(origin) for inner in body.eqns)
    if row.has(Trait.PRODUCT):
        factors = origin.invars[1:] if origin.primitive is lax.div_p else origin.invars
        return not any(map(_compat.is_literal, factors))
    is_straight = row.degree == "keep" or row.has(Trait.NO_DERIVATIVE) or origin.primitive is lax.clamp_p
    return row.has(Trait.CURVED) and not is_straight


def literals(equations: Iterable[Equation], intervals: Intervals) -> dict[Value, float]:
    """The operands of equations that are numbers known when the program is staged."""
    ends = ((value, intervals[value]) for equation in equations for value in equation.inputs)
    return {value: low for value, (low, high) in ends if low == high}


class _Joiner:
    """Joins segments with one another, and with the literals between, before and after them that scale or shift.

    For example, 2 / (1 + exp(-z)) - 1 is one activation of z:

        neg -> exp -> add 1 -> div 2 _ -> sub _ 1
        [before] [segment] [between] [segment] [after]
    """

    def __init__(self, flow: Flow, claimed: set[Equation], shared: set[Equation], intervals: Intervals):
        self._flow = flow
        self._claimed = claimed
        self._shared = shared
        self._intervals = intervals
        self._order = {equation: index for index, equation in enumerate(flow.graph.equations)}

    def joined(self, segments: list[Segment]) -> list[Segment]:
        """Consecutive segments as one, for example ReLU6 (a maximum and a minimum), or the exp and div of a sigmoid."""
        roots = Counter(segment.root for segment in segments)
        by_root = {segment.root: segment for segment in segments if roots[segment.root] == 1}
        joined: list[Segment] = []
        taken: set[Value] = set()  # roots of segments that were joined to an earlier one
        for segment in reversed(segments):  # in program order
            if segment.root in taken:
                continue
            while True:
                literals = self._literals_after(segment.output) if self._is_formula(segment) else []
                ends = [segment.output, *(e.outputs[0] for e in literals)]
                after = next((by_root[v] for v in ends if v in by_root), None)
                if after is None or not self._is_read_only_by(after.root, after.equations):
                    break
                between = frozenset(literals[: ends.index(after.root)])
                if between and not self._is_formula(after):
                    break
                taken.add(after.root)
                segment = Segment(segment.root, after.output, segment.equations | between | after.equations)
            joined.append(segment)
        return [self._with_ends(segment) if roots[segment.root] == 1 else segment for segment in joined]

    def _with_ends(self, segment: Segment) -> Segment:
        """With the literals around it that make it an increasing function, and with shifts after a formula.

        For example, `-min(-z, 0)` is relu and `1 - exp(-z)` rises: their reflections belong to them. The reflection in
        `relu(-z)` belongs to the layer before it, and that in `-tanh(z)` to the one after it.
        """
        root, ahead = self._reflected(segment)
        after = self._literals_after(segment.output)
        scales = [self._scale_and_shift(equation) for equation in after]
        shifts = [number for number, (_, shifts) in enumerate(scales, 1) if shifts]
        plain = shifts[-1] if shifts and self._is_formula(segment) else 0
        pure = next((number for number in shifts if number > plain), len(after) + 1)
        mirrored = max((n for n, (scale, _) in enumerate(scales, 1) if scale < 0 and plain < n < pure), default=plain)

        def joined(front: bool, n_after: int) -> Segment:
            output = after[n_after - 1].outputs[0] if n_after else segment.output
            equations = segment.equations.union(ahead if front else (), after[:n_after])
            return Segment(root if front else segment.root, output, equations)

        if not ahead and mirrored == plain:
            return joined(False, plain)
        if self._gain(segment) is None:
            return joined(self._is_formula(segment), plain)

        def rises(front: bool, n_after: int) -> bool:
            return (self._gain(joined(front, n_after)) or 0) > 0

        if ahead and mirrored > plain and rises(True, mirrored):
            return joined(True, mirrored)
        if rises(True, plain) or rises(True, 0):  # with its own reflection, as in 1 / (1 + exp(-z))
            return joined(True, plain)
        return joined(False, mirrored if rises(False, mirrored) and not rises(False, plain) else plain)

    def _reflected(self, segment: Segment) -> tuple[Value, list[Equation]]:
        """The value whose reflection a segment reads, and the scales between the two; else the root and none."""
        ahead: list[Equation] = []
        found, value = (segment.root, 0), segment.root
        while (source := value.source) and self._is_literal(source):
            scale, shifts = self._scale_and_shift(source)
            if shifts or not self._is_read_only_by(value, {*segment.equations, *ahead}):
                break
            ahead.append(source)
            (value,) = self._flow.active(source)
            if scale < 0:
                found = value, len(ahead)
        return found[0], ahead[: found[1]]

    def _is_formula(self, segment: Segment) -> bool:
        """Whether a function is curved. The literals next to a ReLU belong to a layer, and not to the ReLU."""
        products = {equation for equation in segment.equations if equation.has(Trait.PRODUCT)}
        others = segment.equations - products
        return not all(map(self._flow.is_affine, products)) or any(_bends(equation.origin) for equation in others)

    def _gain(self, segment: Segment) -> float | None:
        equations = sorted(segment.equations, key=self._order.__getitem__)
        return gain(segment.root, segment.output, equations, literals(equations, self._intervals))

    def _literals_after(self, value: Value) -> list[Equation]:
        found: list[Equation] = []
        while (user := self._flow.only_user(value)) and self._is_literal(user):
            found.append(user)
            (value,) = user.outputs
        return found

    def _is_read_only_by(self, value: Value, equations: Set[Equation]) -> bool:
        inside = equations - self._shared
        return value not in self._flow.graph.outputs and all(user in inside for user in self._flow.users[value])

    def _is_literal(self, equation: Equation) -> bool:
        """Whether an equation scales or shifts by a literal, or only casts."""
        if equation in self._claimed or not self._flow.is_affine(equation):
            return False
        return all(low == high and math.isfinite(low) for low, high in self._others(equation))

    def _others(self, equation: Equation) -> list[tuple[float, float]]:
        active = self._flow.active(equation)
        return [self._intervals[value] for value in equation.inputs if value not in active]

    def _scale_and_shift(self, equation: Equation) -> tuple[float, bool]:
        """The literal that an equation multiplies by, and whether it adds one."""
        numbers = [low for low, _ in self._others(equation)]
        reflects = equation.op is lax.neg_p or (
            equation.op is lax.sub_p and equation.inputs[0] not in self._flow.active(equation)
        )
        if equation.has(Trait.PRODUCT) and numbers:
            return (numbers[0] if equation.op is lax.mul_p else math.copysign(1, numbers[0])), False
        return (-1.0 if reflects else 1.0), bool(numbers)


class _Dominators:
    """The immediate dominator of each output of an elementwise equation; None if it has none on this side of a cut."""

    def __init__(self, flow: Flow, claimed: set[Equation]):
        self._flow = flow
        self.above: dict[Value, Value | None] = {}
        self._depth: dict[Value, int] = {}
        for equation in flow.graph.equations:
            if equation not in claimed and is_elementwise(equation):
                output = equation.outputs[0]
                self.above[output] = above = self._dominator(equation)
                self._depth[output] = 0 if above is None else self._depth.get(above, 0) + 1

    def _related(self, equation: Equation) -> list[Value]:
        """The operands through which an equation depends on the explained input, except masks from elsewhere."""
        active = set(self._flow.active(equation))
        return [
            value
            for value in dict.fromkeys(equation.inputs)
            if value in active
            or (self._flow.activity[value] is not CONSTANT and self.above.get(value) and value not in active)
        ]

    def _dominator(self, equation: Equation) -> Value | None:
        shape = equation.outputs[0].shape
        related = [value for value in self._related(equation) if value.shape == shape]
        active = list(dict.fromkeys(self._flow.active(equation)))
        if not related or any(value.shape != shape or jnp.iscomplexobj(value.aval) for value in active):
            return None
        common: Value | None = related[0]
        for value in related[1:]:
            common = self._common(common, value)
        while common is not None and self._flow.activity[common] is not ACTIVE:
            common = self.above.get(common)  # for example from x > 0 to x
        if common is not None:
            return common
        # With a mask from elsewhere held constant, this is a function of the one active operand.
        return active[0] if len(active) == 1 else None

    def _common(self, a: Value | None, b: Value | None) -> Value | None:
        while a is not b and a is not None and b is not None:
            if self._depth.get(a, 0) >= self._depth.get(b, 0):
                a = self.above.get(a)
            else:
                b = self.above.get(b)
        return a if a is b else None

    def between(self, root: Value, output: Value) -> set[Equation]:
        """The equations on the paths from root to output."""
        leads: dict[Value, bool] = {root: True}
        stack = [output]
        while stack:
            value = stack[-1]
            if value in leads:
                stack.pop()
                continue
            behind = self._related(value.source) if value.source and self.above.get(value) is not None else []
            waiting = [v for v in behind if v not in leads]
            if waiting:
                stack.extend(waiting)
            else:
                leads[value] = any(leads[v] for v in behind)
                stack.pop()
        return {value.source for value, is_on in leads.items() if is_on and value is not root and value.source}
