"""What a program is made of: its nodes, the units that rules act on.

Order matters. Activity first, then normalization and softmax (or every `rsqrt` and `exp` in them would be an activation), then
activations, then affine runs, then what is left. Whatever no step recognizes is a node of kind "unknown".
"""

import enum
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from jaxplain import _compat
from jaxplain._analysis.activations import Flow, activations
from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity, activities
from jaxplain._analysis.intervals import Bounds
from jaxplain._analysis.patterns import (
    Group,
    Normalization,
    Pattern,
    Region,
    Softmax,
    found_regions,
    normalizations,
    softmaxes,
)
from jaxplain._analysis.shifts import unrecognized_shifts
from jaxplain._errors import JaxplainError, explain_error
from jaxplain._ir import primitives
from jaxplain._ir.graph import (
    Equation,
    Graph,
    Opens,
    Value,
    equations_inside,
    flatten,
    is_opened,
    is_readable,
    moved_axes,
    varying_axes,
)

# Kinds that distribute relevance by weights; "first" and "last" are counted among these.
LAYERS = ("dense", "convolution")
CONTRACTIONS = (*LAYERS, "sum", "fft")
KINDS = (
    *CONTRACTIONS,
    *("scale_shift", "normalization", "activation", "softmax", "log_softmax", "logsumexp"),
    *("add", "product", "gate", "max", "structural", "loop", "branch", "checkpoint", "custom", "unknown"),
)


SOFTMAX = ("softmax", "log_softmax", "logsumexp")
LOOPS_TAKEN_APART = 4  # at most so many in each other, for their first iteration


class Behind(enum.IntEnum):
    """What lies between the explained input and a value; the largest counts where several meet."""

    NOTHING = 0  # no way from the input
    MOVES = 1  # elements of the input, arranged anew
    IMAGE = 2  # … shifted, scaled, averaged: between the values that bounds of the input take here
    OTHER = 3  # no layer yet
    LAYER = 4


class Node:
    """One unit of a program: `outputs` from the active `inputs` and from `others`, by `equations` in program order.

    An affine node is prefix → core → suffix: scale and shift before the contraction, the contraction, scale and shift after.

    Attributes:
        kind: one of KINDS.
        path: the name scopes of the model's layer, joined by "/"; empty where the model has none.
        behind: what lies between the explained input and its own.
        is_first: a layer, and no other lies before it on any way from the explained input.
        is_last: no layer with weights lies after it on any way to the score.
        is_nonnegative: its input cannot be negative (it comes from a ReLU, a softmax, …).
        signal: for a gate, which input is the signal.
        scale_axes: axes of the core's output along which the suffix may scale differently.
        bodies: the analyses of a loop's, a branch's or a checkpoint's programs.
        group: for a softmax, how it sums over its groups.
        others_vary: whether some of `others` change with the explained input, without a derivative.
        statistic: for a product that divides, which input is the reciprocal, or the size that a norm divides by.
    """

    def __init__(
        self,
        kind: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        equations: Iterable[Equation],
        order: dict[Equation, int],
        *,
        named: Equation | None = None,
        core: Equation | None = None,
        prefix: Sequence[Equation] = (),
        suffix: Sequence[Equation] = (),
        group: Group | None = None,
    ):
        self.kind = kind
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.equations = tuple(sorted(equations, key=order.__getitem__))
        made = {value for equation in self.equations for value in equation.outputs}
        read = dict.fromkeys(value for equation in self.equations for value in equation.inputs)
        self.others = tuple(v for v in read if v not in made and v not in self.inputs)
        self.named = named or core or self.equations[-1]
        self.core = core
        self.prefix = tuple(prefix)
        self.suffix = tuple(suffix)
        self.group = group
        self.behind = Behind.NOTHING
        self.is_last = False
        self.is_nonnegative = False
        self.signal: int | None = None
        self.scale_axes: frozenset[int] | None = None
        self.bodies: tuple[Analysis, ...] = ()
        self.others_vary = False
        self.statistic: int | None = None

    @property
    def path(self) -> str:
        return self.named.path

    @property
    def is_first(self) -> bool:
        return self.kind in LAYERS and Behind.NOTHING < self.behind < Behind.LAYER

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its (first) output."""
        return self.outputs[0].shape

    @property
    def source(self) -> str:
        """The user's source line, for messages."""
        return self.named.line

    @property
    def primitive(self) -> str:
        return self.named.primitive

    def __repr__(self) -> str:
        return f"<{self.kind} {self.path or self.primitive} {list(self.shape)}>"


class Analysis:
    """A graph and its nodes. `steps` is how to run it: nodes, and the equations that no node carries out."""

    def __init__(
        self,
        graph: Graph,
        activity: dict[Value, Activity],
        patterns: Sequence[Pattern] = (),
        statistics: Literal["held", "followed"] = "held",
    ):
        self.graph = graph
        self.activity = activity
        order = {equation: index for index, equation in enumerate(graph.equations)}
        regions = found_regions(graph, activity, patterns)
        inside = {equation for region in regions for equation in region.equations}
        self.bounds = Bounds(graph)
        softs = softmaxes(graph, activity, self.bounds, inside)
        inside.update(equation for softmax in softs for equation in softmax.equations)
        found = normalizations(graph, activity, self.bounds, inside)
        norms = found if statistics == "held" else []
        held = {(norm.equation, norm.factor) for norm in norms}
        self.flow = Flow(graph, activity, held)
        self.nodes = sorted(
            _nodes(self.flow, regions, softs, norms, self.bounds, order), key=lambda node: order[node.equations[-1]]
        )
        for node in self.nodes:
            bodies = node.equations[0].bodies if node.kind in _BODY_KINDS else ()
            node.bodies = tuple(Analysis(body, activity, patterns, statistics) for body in bodies)
            node.others_vary = any(activity[value] is not CONSTANT for value in node.others)
        factors = {norm.equation: norm.equation.inputs[norm.factor] for norm in found}
        for node in self.nodes:
            if node.kind in ("product", "gate") and len(node.inputs) == 2:
                reciprocals = [value for value in node.inputs if _is_reciprocal(value, activity)]
                if (factor := next(iter(reciprocals), factors.get(node.equations[0]))) is not None:
                    node.statistic = node.inputs.index(factor)
        self.steps = _steps(graph, self.nodes)

    def with_positions(self) -> "Analysis":
        """Itself, with its first and last layers marked."""
        _mark_first(self, [Behind.MOVES] * len(self.graph.inputs))
        _mark_last(self, [False] * len(self.graph.outputs))
        return self

    def all_nodes(self) -> list[Node]:
        """The nodes of this program and of the bodies in it, in order; a loop's come after the loop."""
        return [n for node in self.nodes for n in (node, *(m for body in node.bodies for m in body.all_nodes()))]


def _is_reciprocal(value: Value, activity: dict[Value, Activity]) -> bool:
    """Whether a value is 1/v or 1/√v of an active value, moved and scaled perhaps."""
    while (source := value.source) is not None:
        active = [v for v in source.inputs if activity[v] is ACTIVE]
        if len(active) != 1:
            return False
        divides = source.primitive == "div" and source.inputs[1] is active[0]
        if divides or source.primitive == "rsqrt" or source.params.get("y", 1) == -1:
            return True
        if source.primitive not in primitives.STRUCTURAL | primitives.PRODUCTS | {"convert_element_type"}:
            return False
        (value,) = active
    return False


_BODY_KINDS = ("loop", "branch", "checkpoint")


def analyze(
    closed: Any,
    *,
    patterns: Sequence[Pattern] = (),
    opens: Opens = is_opened,
    depth: int = LOOPS_TAKEN_APART,
    statistics: Literal["held", "followed"] = "held",
    look_ups: bool = False,
) -> Analysis:
    """The analysis of a staged score, all of whose inputs are explained.

    `patterns` are what the user wants to be one node, `opens` says which calls with derivatives of their own are looked into, `depth`
    how many loops in each other may be taken apart. `statistics` of a normalization are held constant, or followed: then there are no nodes
    of that kind, but the sums, squares and products that it is made of. With `look_ups`, what integers look up is explained, too.
    """
    closed = _compat.without_dead_code(closed)
    graph = flatten(closed, opens=opens)
    activity = activities(graph, [ACTIVE] * len(graph.inputs), look_ups=look_ups)
    # An elementwise call of several active values (logaddexp of two branches) is no activation: its equations may tell more.
    mixed = {
        id(e.origin)
        for e in equations_inside(graph)
        if e.primitive in primitives.CUSTOM and sum(activity[v] is ACTIVE for v in e.inputs) > 1
    }
    if mixed:
        graph = flatten(
            closed, opens=lambda origin, body: is_readable(body) if id(origin) in mixed else opens(origin, body)
        )
        activity = activities(graph, [ACTIVE] * len(graph.inputs), look_ups=look_ups)
    analysis = Analysis(graph, activity, patterns, statistics)
    recognized = {e for node in analysis.all_nodes() if node.kind in SOFTMAX for e in node.equations}
    if statistics == "followed" and (shifts := unrecognized_shifts(graph, recognized)):
        activity = activities(graph, [ACTIVE] * len(graph.inputs), shifts, look_ups=look_ups)
        analysis = Analysis(graph, activity, patterns, statistics)
    _, loops = _mark_first(analysis, [Behind.MOVES] * len(graph.inputs))
    if loops and depth:
        # The layers of the first iteration are first, as they would be in the same program without the loop.
        again = _compat.peeled(closed, loops)
        return analyze(again, patterns=patterns, opens=opens, depth=depth - 1, statistics=statistics, look_ups=look_ups)
    _mark_last(analysis, [False] * len(graph.outputs))
    return analysis


def _nodes(
    flow: Flow,
    regions: list[Region],
    softs: list[Softmax],
    norms: list[Normalization],
    bounds: Bounds,
    order: dict[Equation, int],
) -> list[Node]:
    claimed: set[Equation] = set()
    nodes: list[Node] = []

    def claim(node: Node) -> None:
        nodes.append(node)
        claimed.update(node.equations)

    for region in regions:
        if outputs := [value for value in region.outputs if value in flow.live]:
            claim(Node(region.kind, region.inputs, outputs, region.equations, order))
    for softmax in softs:
        if softmax.output in flow.live:
            claim(Node(softmax.kind, [softmax.root], [softmax.output], softmax.equations, order, group=softmax.group))
    cores = {norm.equation for norm in norms}
    segments, shared = activations(flow, claimed | cores, bounds)
    for segment in segments:
        claim(Node("activation", [segment.root], [segment.output], segment.equations, order))
    claimed -= shared
    # What carries no relevance is in no other node.
    claimed.update(e for e in flow.graph.equations if not flow.is_live(e))
    runs = _Runs(flow, claimed, cores, order)
    for norm in norms:
        if flow.is_live(norm.equation):
            claim(runs.normalization(norm))
    for equation in flow.graph.equations:
        if equation not in claimed and equation.primitive in primitives.CONTRACTION and len(flow.active(equation)) == 1:
            claim(runs.contraction(equation))
    for equation in flow.graph.equations:
        if equation in claimed:
            continue
        if not flow.active(equation):  # a look-up
            claim(Node("structural", [], equation.outputs, [equation], order))
        else:
            is_affine = flow.is_affine(equation) or _spreads(equation, flow)
            claim(runs.scale_shift(equation) if is_affine else _other(equation, flow, bounds, order))
    _require_cover(flow, nodes)
    for node in nodes:
        node.is_nonnegative = all(bounds[value][0] >= 0 for value in node.inputs[:1])
    return nodes


def _spreads(equation: Equation, flow: Flow) -> bool:
    """Whether a constant is added to an active value that is broadcast to it."""
    return equation.primitive in primitives.SUMS and len(flow.active(equation)) == 1


def _require_cover(flow: Flow, nodes: list[Node]) -> None:
    """Every active value that a node reads must be made by a node: else a bare derivative would pass for relevance."""
    made = {*flow.graph.inputs, *(value for node in nodes for value in node.outputs)}
    for node in nodes:
        for value in node.inputs:
            if value not in made:
                raise JaxplainError(
                    explain_error(
                        "the analysis left a gap between two nodes of the score: please report this.",
                        where=node.source,
                        got=f"{node.kind} reads the result of {value.source}, which belongs to no node",
                        fix="write the lines around it with fewer shared intermediate values",
                    )
                )


def _other(equation: Equation, flow: Flow, bounds: Bounds, order: dict[Equation, int]) -> Node:
    """The node of an equation that is neither an activation nor affine in one operand."""
    active = list(dict.fromkeys(flow.active(equation)))
    outputs = [value for value in equation.outputs if value in flow.live]
    node = Node(_kind(equation, flow.active(equation)), active, outputs, [equation], order)
    if node.kind == "product" and len(active) == 2:
        gates = [_gates(equation, value, bounds) for value in active]
        if sum(gates) == 1:
            node.kind, node.signal = "gate", gates.index(False)
    return node


def _gates(equation: Equation, factor: Value, bounds: Bounds) -> bool:
    """Whether an active factor only lets more or less of the other through: it is in [0, c], or it divides and is above 0."""
    low, high = bounds[factor]
    if equation.primitive == "div":
        return factor is equation.inputs[1] and low > 0
    without_sum = equation.primitive == "mul" or (
        equation.primitive == "dot_general" and not any(equation.params["dimension_numbers"][0])
    )
    return without_sum and low >= 0 and high < math.inf


def _kind(equation: Equation, active: list[Value]) -> str:
    """The kind of an equation by itself; `active` names an operand as often as it occurs (x·x is a product)."""
    name = equation.primitive
    if name in primitives.CHECKPOINT:
        return "checkpoint"
    if name in ("scan", "cond"):
        return "loop" if name == "scan" else "branch"
    if name in primitives.CUSTOM:
        return "custom" if is_readable(next(_compat.closed_bodies(equation.origin))) else "unknown"
    if name in primitives.SUMS or name in ("scatter-add", "scatter_add", "scatter-sub"):
        return "add"
    if name in primitives.PRODUCTS or name in primitives.WEIGHTED:
        return "product"  # of active values, or of an active number and an array
    if name in primitives.MAXIMUM:
        return "max"
    if name in primitives.STRUCTURAL or (name == "select_n" and equation.inputs[0] not in active):
        return "structural"
    return "unknown"


class _Runs:
    """Affine runs: a core, and the scaling, shifting and moving around it that nothing else reads."""

    def __init__(self, flow: Flow, claimed: set[Equation], cores: set[Equation], order: dict[Equation, int]):
        self._flow = flow
        self._claimed = claimed
        self._cores = cores
        self._order = order

    def contraction(self, core: Equation) -> Node:
        (operand,) = self._flow.active(core)
        (output,) = core.outputs
        prefix, start = self._before(core, operand)
        suffix, end = self._after(output)
        kind = primitives.WEIGHTED.get(core.primitive) or ("fft" if core.primitive == "fft" else "sum")
        if kind == "sum" and any(self._weighs(equation) for equation in prefix):
            kind = "dense"  # sum(x * w)
        node = Node(
            kind, [start], [end], [*prefix, core, *suffix], self._order, core=core, prefix=prefix, suffix=suffix
        )
        node.scale_axes = _scale_axes(suffix, output, self._flow)
        return node

    def normalization(self, norm: Normalization) -> Node:
        equations = [norm.equation]
        root = norm.equation.inputs[1 - norm.factor]
        inside = {norm.equation, *norm.centering}
        if norm.centering and self._claimed.isdisjoint(norm.centering) and self._reads_only_inside(norm, inside):
            equations, root = [*norm.centering, norm.equation], norm.root
        suffix, end = self._after(norm.equation.outputs[0])
        equations = [*equations, *suffix]
        return Node("normalization", [root], [end], equations, self._order, named=norm.equation, suffix=suffix)

    def _reads_only_inside(self, norm: Normalization, inside: set[Equation]) -> bool:
        made = [value for equation in norm.centering for value in equation.outputs]
        return all(user in inside for value in made for user in self._flow.users.get(value, []))

    def scale_shift(self, first: Equation) -> Node:
        suffix, end = self._after(first.outputs[0])
        return Node("scale_shift", self._flow.active(first), [end], [first, *suffix], self._order, suffix=suffix)

    def _weighs(self, equation: Equation) -> bool:
        others = [v for v in equation.inputs if v not in self._flow.active(equation)]
        return equation.primitive in primitives.PRODUCTS and any(v.aval.size > 1 for v in others)

    def _is_free(self, equation: Equation) -> bool:
        return equation not in self._claimed and equation not in self._cores

    def _moves(self, equation: Equation, value: Value) -> bool:
        return equation.is_move and equation.inputs[0] is value

    def _after(self, value: Value) -> tuple[list[Equation], Value]:
        """Scaling, shifting and moving after `value`, up to the last scale or shift."""
        way: list[Equation] = []
        kept, end = 0, value
        while (user := self._flow.only_user(value)) and self._is_free(user):
            is_affine = self._flow.is_affine(user)
            if not is_affine and not self._moves(user, value):
                break
            way.append(user)
            value = user.outputs[0]
            if is_affine:
                kept, end = len(way), value
        return way[:kept], end

    def _before(self, core: Equation, value: Value) -> tuple[list[Equation], Value]:
        """Scaling, shifting and moving before the core, from the first scale or shift on."""
        way: list[Equation] = []
        kept, start, user = 0, value, core
        while (source := value.source) and self._is_free(source) and self._flow.only_user(value) is user:
            is_affine = self._flow.is_affine(source)
            if not is_affine and not (self._moves(source, source.inputs[0]) and self._flow.active(source)):
                break
            way.append(source)
            user, (value,) = source, self._flow.active(source)
            if is_affine:
                kept, start = len(way), value
        return way[:kept][::-1], start


def _scale_axes(suffix: Sequence[Equation], output: Value, flow: Flow) -> frozenset[int] | None:
    """Axes of `output` along which the factors in its suffix may differ; None if that is not clear."""
    # Follow each axis of the core's output through the moves; a new axis of size 1 has no origin.
    axes: list[int | None] = list(range(len(output.shape)))
    found: set[int] = set()
    for equation in suffix:
        if equation.primitive in primitives.PRODUCTS:
            (factor,) = (v for v in equation.inputs if v not in flow.active(equation))
            varying = varying_axes(factor)
            found.update(a for axis in varying if (a := axes[axis]) is not None)
        elif equation.is_move:
            moved = moved_axes(equation, axes)
            if moved is None:
                return None
            axes = moved
    return frozenset(found)


def _steps(graph: Graph, nodes: list[Node]) -> list[Node | Equation]:
    """Nodes at the place of their last equation, and every equation that something outside of nodes still needs."""
    ends: dict[Equation, list[Node]] = {}
    for node in nodes:
        ends.setdefault(node.equations[-1], []).append(node)
    inside = {equation for node in nodes for equation in node.equations}
    made = {value for node in nodes for value in node.outputs}
    needed: set[Value] = {*graph.outputs}
    steps: list[Node | Equation] = []
    for equation in reversed(graph.equations):
        for node in ends.get(equation, ()):
            steps.append(node)
            needed.update(node.inputs, node.others)
        if equation not in inside or needed.intersection(set(equation.outputs) - made):
            steps.append(equation)
            needed.update(equation.inputs)
    return steps[::-1]


def _mark_first(analysis: Analysis, inputs: Sequence[Behind]) -> tuple[list[Behind], list[Any]]:
    """Note what lies behind each node, and so which layers are first; return what lies behind each output.

    Also the loops in which a layer is first in the first iteration alone.
    """
    behind: dict[Value, Behind] = dict(zip(analysis.graph.inputs, inputs, strict=True))
    loops: list[Any] = []
    for node in analysis.nodes:
        node.behind = max((behind.get(value, Behind.NOTHING) for value in node.inputs), default=Behind.NOTHING)
        if node.bodies:
            whole, inside = _through(node, behind)
            loops.extend(inside)
            after = [whole[node.equations[0].outputs.index(value)] for value in node.outputs]
        else:
            after = [_passed(node, analysis.activity)] * len(node.outputs)
        behind.update(zip(node.outputs, after, strict=True))
    return [behind.get(value, Behind.NOTHING) for value in analysis.graph.outputs], loops


def _passed(node: Node, activity: dict[Value, Activity]) -> Behind:
    """What lies behind the outputs of a node."""
    if node.kind in LAYERS:
        return Behind.LAYER if node.behind else Behind.NOTHING
    if any(activity[value] is not CONSTANT for value in node.others) or node.behind > Behind.IMAGE:
        return max(node.behind, Behind.OTHER)
    if node.kind == "structural":
        return node.behind
    return max(node.behind, Behind.IMAGE if node.kind in ("scale_shift", "sum", "max") else Behind.OTHER)


def _through(node: Node, behind: dict[Value, Behind]) -> tuple[list[Behind], list[Any]]:
    """What lies behind a loop's, branch's or checkpoint's outputs, by visiting its bodies; a loop's carry until nothing changes."""
    (equation,) = node.equations
    flags = [behind.get(value, Behind.NOTHING) for value in equation.inputs]
    if node.kind == "branch":
        visits = [_mark_first(body, flags[1:]) for body in node.bodies]
        return [max(v) for v in zip(*(v for v, _ in visits), strict=True)], [loop for _, o in visits for loop in o]
    (body,) = node.bodies
    if node.kind == "checkpoint":
        return _mark_first(body, flags)
    n_consts, n_carry = _compat.scan_counts(equation.origin)
    carried = slice(n_consts, n_consts + n_carry)
    in_first = None
    while True:
        out, loops = _mark_first(body, flags)
        firsts = {n for n in body.all_nodes() if n.is_first}
        in_first = in_first or (firsts, loops)
        carry = [max(a, b) for a, b in zip(flags[carried], out[:n_carry], strict=True)]
        if carry == flags[carried]:
            is_special = in_first[0] - firsts or (in_first[1] and not loops)  # a loop in the loop has first layers then
            if is_special and equation.params["length"]:
                loops = [*loops, equation.origin]
            return [*carry, *out[n_carry:]], loops
        flags[carried] = carry


def _mark_last(analysis: Analysis, outputs: Sequence[bool]) -> list[bool]:
    """Mark the layers that no other layer follows; return whether a layer lies ahead of each input."""
    ahead: dict[Value, bool] = {}
    for value, flag in zip(analysis.graph.outputs, outputs, strict=True):
        ahead[value] = ahead.get(value, False) or flag
    for node in reversed(analysis.nodes):
        after = any(ahead.get(value, False) for value in node.outputs)
        node.is_last = node.kind in LAYERS and not after
        before = dict.fromkeys(node.inputs, after or node.kind in LAYERS)
        if node.bodies:
            before = _backwards_through(node, ahead)
        for value, flag in before.items():
            ahead[value] = ahead.get(value, False) or flag
    return [ahead.get(value, False) for value in analysis.graph.inputs]


def _backwards_through(node: Node, ahead: dict[Value, bool]) -> dict[Value, bool]:
    (equation,) = node.equations
    flags = [ahead.get(value, False) for value in equation.outputs]
    if node.kind == "loop":
        n_consts, n_carry = _compat.scan_counts(equation.origin)
        while True:
            inputs = _mark_last(node.bodies[0], flags)
            carry = [a or b for a, b in zip(flags[:n_carry], inputs[n_consts : n_consts + n_carry], strict=True)]
            if carry == flags[:n_carry]:
                break
            flags[:n_carry] = carry
    elif node.kind == "branch":
        several = [_mark_last(body, flags) for body in node.bodies]
        inputs = [False, *map(any, zip(*several, strict=True))]
    else:
        inputs = _mark_last(node.bodies[0], flags)
    return {
        value: any(flag for v, flag in zip(equation.inputs, inputs, strict=True) if v is value) for value in node.inputs
    }
