"""The analysis of a program: its nodes, the units that rules act on.

Order matters. Activity comes first. Softmax and normalization come next, because every `rsqrt` and `exp` in them would
otherwise be an activation, and then activations, affine runs, and the rest. An equation that no step recognizes is a
node of kind "unknown".
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

from jax import lax

from jaxplain import _compat
from jaxplain._analysis.activations import Flow, activations, literals
from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity, activities
from jaxplain._analysis.affine import AffineRuns
from jaxplain._analysis.constancy import Varying, varying
from jaxplain._analysis.intervals import Intervals, intervals
from jaxplain._analysis.nodes import SOFTMAX, WITH_BODIES, Node
from jaxplain._analysis.normalization import Normalization, normalizations
from jaxplain._analysis.patterns import Pattern, Region, found_regions
from jaxplain._analysis.positions import mark_first, mark_last
from jaxplain._analysis.softmax import Softmax, softmaxes, unrecognized_shifts
from jaxplain._errors import JaxplainError, explain_error
from jaxplain._ir.graph import (
    Equation,
    Graph,
    Opens,
    Value,
    equations_inside,
    flatten,
    is_opened,
    is_readable,
)
from jaxplain._ir.interpret import peeled
from jaxplain._ir.primitives import Trait

MAX_PEELING_DEPTH = 4  # maximum nesting depth of scans whose first iteration is peeled


class Analysis:
    """A graph and its nodes. `steps` are the nodes and the equations outside of nodes, in order of execution."""

    def __init__(
        self,
        graph: Graph,
        activity: dict[Value, Activity],
        patterns: Sequence[Pattern] = (),
        statistics: Literal["held", "followed"] = "held",
        within: "Analysis | None" = None,  # of the program that this one is a body of
    ):
        self.graph = graph
        self.activity = activity
        self.intervals: Intervals = intervals(graph) if within is None else within.intervals
        self.varying: dict[Value, Varying] = varying(graph) if within is None else within.varying
        order = {equation: index for index, equation in enumerate(graph.equations)}
        regions = found_regions(graph, activity, patterns)
        inside = {equation for region in regions for equation in region.equations}
        softs = softmaxes(graph, activity, self.intervals, inside)
        inside.update(equation for softmax in softs for equation in softmax.equations)
        found = normalizations(graph, activity, self.intervals, inside)
        norms = found if statistics == "held" else []
        held = {(norm.equation, norm.factor) for norm in norms}
        self.flow = Flow(graph, activity, held)
        self.nodes = sorted(
            _nodes(self.flow, regions, softs, norms, self.intervals, order), key=lambda node: order[node.equations[-1]]
        )
        for node in self.nodes:
            bodies = node.control.bodies if node.kind in WITH_BODIES else ()
            node.bodies = tuple(Analysis(body, activity, patterns, statistics, self) for body in bodies)
            if node.kind in ("product", "gate"):
                node.varying = tuple(self.varying[value] for value in node.inputs)
            node.others_vary = any(activity[value] is not CONSTANT for value in node.others)
        factors = {norm.equation: norm.equation.inputs[norm.factor] for norm in found}
        # 1 / (1 + exp(-z)) is an activation, and no reciprocal.
        formulas = {
            e for n in self.nodes if n.kind == "activation" and any(map(_is_no_power, n.equations)) for e in n.equations
        }
        for node in self.nodes:
            if node.kind in ("product", "gate") and len(node.inputs) == 2:
                reciprocals = [v for v in node.inputs if _is_reciprocal_of_active(v, activity, formulas)]
                if (factor := factors.get(node.equations[0], next(iter(reciprocals), None))) is not None:
                    node.statistic = node.inputs.index(factor)
        self.steps = _steps(graph, self.nodes)

    def with_positions(self) -> "Analysis":
        """Itself, with its first and last layers marked."""
        mark_first(self, self.activity)
        mark_last(self)
        return self

    # As a program: see `dataflow.Steps`.

    @property
    def inputs(self) -> Sequence[Value]:
        return self.graph.inputs

    @property
    def outputs(self) -> Sequence[Value]:
        return self.graph.outputs

    @property
    def constants(self) -> dict[Value, Any]:
        return self.graph.constants

    def all_nodes(self) -> list[Node]:
        """The nodes of this program and of the bodies in it, in order; a loop's come after the loop."""
        return [n for node in self.nodes for n in (node, *(m for body in node.bodies for m in body.all_nodes()))]


def _is_no_power(equation: Equation) -> bool:
    return equation.has(Trait.CURVED) and equation.row.degree is None


def _is_reciprocal_of_active(value: Value, activity: dict[Value, Activity], formulas: Collection[Equation]) -> bool:
    """Whether a value is 1/v or 1/√v of an active value, possibly moved and scaled."""
    while (source := value.source) is not None and source not in formulas:
        active = [v for v in source.inputs if activity[v] is ACTIVE]
        if len(active) != 1:
            return False
        divides = source.op is lax.div_p and source.inputs[1] is active[0]
        if divides or source.op is lax.rsqrt_p or source.params.get("y", 1) == -1:
            return True
        passes = source.has(Trait.STRUCTURAL) or source.has(Trait.PRODUCT) or source.has(Trait.CAST)
        if not passes:
            return False
        (value,) = active
    return False


def analyze(
    closed: Any,
    *,
    patterns: Sequence[Pattern] = (),
    opens: Opens = is_opened,
    depth: int = MAX_PEELING_DEPTH,
    statistics: Literal["held", "followed"] = "held",
    look_ups: bool = False,
) -> Analysis:
    """The analysis of a staged score, all of whose inputs are explained.

    Args:
        patterns: Stretches of the program that the user wants to be one node each.
        opens: Selects the calls with derivatives of their own to replace by their bodies.
        depth: Maximum nesting depth of loops whose first iteration is peeled.
        statistics: Whether the statistics of a normalization are held constant or followed. If they are followed, its
            sums, squares and products are nodes of their own.
        look_ups: Whether values that integers look up are explained, too.
    """
    closed = _compat.without_dead_code(closed)
    graph = flatten(closed, opens=opens)
    activity = activities(graph, [ACTIVE] * len(graph.inputs), look_ups=look_ups)
    # An elementwise call of several active values (logaddexp of two branches) is no activation; its equations may be.
    mixed = {
        id(e.origin)
        for e in equations_inside(graph)
        if e.has(Trait.CUSTOM) and sum(activity[v] is ACTIVE for v in e.inputs) > 1
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
    loops = mark_first(analysis, activity)
    if loops and depth:
        again = peeled(closed, loops)
        return analyze(again, patterns=patterns, opens=opens, depth=depth - 1, statistics=statistics, look_ups=look_ups)
    mark_last(analysis)
    return analysis


def _nodes(
    flow: Flow,
    regions: list[Region],
    softs: list[Softmax],
    norms: list[Normalization],
    intervals: Intervals,
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
    segments, shared = activations(flow, claimed | cores, intervals)
    for segment in segments:
        node = Node("activation", [segment.root], [segment.output], segment.equations, order)
        node.literals = literals(node.equations, intervals)
        claim(node)
    claimed -= shared
    # Equations that carry no relevance get no other node.
    claimed.update(e for e in flow.graph.equations if not flow.is_live(e))
    runs = AffineRuns(flow, claimed, cores, order)
    for norm in norms:
        if flow.is_live(norm.equation):
            claim(runs.normalization(norm))
    for equation in flow.graph.equations:
        if equation not in claimed and equation.has(Trait.CONTRACTION) and len(flow.active(equation)) == 1:
            claim(runs.contraction(equation))
    for equation in flow.graph.equations:
        if equation in claimed:
            continue
        if not flow.active(equation):  # a look-up
            claim(Node("structural", [], equation.outputs, [equation], order))
        else:
            is_affine = flow.is_affine(equation) or _spreads(equation, flow)
            claim(runs.scale_shift(equation) if is_affine else _other(equation, flow, intervals, order))
    _require_cover(flow, nodes)
    for node in nodes:
        node.is_nonnegative = all(intervals[value][0] >= 0 for value in node.inputs[:1])
    return nodes


def _spreads(equation: Equation, flow: Flow) -> bool:
    """Whether a constant is added to an active value that is broadcast to it."""
    return equation.has(Trait.SUM) and len(flow.active(equation)) == 1


def _require_cover(flow: Flow, nodes: list[Node]) -> None:
    """Raise if no node makes an active value that a node reads, because a plain derivative would pass for relevance."""
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


def _other(equation: Equation, flow: Flow, intervals: Intervals, order: dict[Equation, int]) -> Node:
    """The node of an equation that is neither an activation nor affine in one operand."""
    active = list(dict.fromkeys(flow.active(equation)))
    outputs = [value for value in equation.outputs if value in flow.live]
    node = Node(_kind(equation, flow.active(equation)), active, outputs, [equation], order)
    if node.kind == "product" and len(active) == 2:
        gates = [_gates(equation, value, intervals) for value in active]
        if sum(gates) == 1:
            node.kind, node.signal = "gate", gates.index(False)
    return node


def _gates(equation: Equation, factor: Value, intervals: Intervals) -> bool:
    """Whether an active factor acts as a gate on the other: it lies in [0, c], or it divides and is positive."""
    low, high = intervals[factor]
    if equation.op is lax.div_p:
        return factor is equation.inputs[1] and low > 0
    return equation.has(Trait.PRODUCT) and low >= 0 and high < math.inf


# The kind of node that an equation with a trait makes by itself.
_KIND_OF = (
    (Trait.CHECKPOINT, "checkpoint"),
    (Trait.LOOP, "loop"),
    (Trait.BRANCH, "branch"),
    (Trait.SUM, "add"),
    (Trait.PRODUCT, "product"),
    (Trait.WEIGHTED, "product"),  # of active values, or of an active number and an array
    (Trait.MAXIMUM, "max"),
    (Trait.STRUCTURAL, "structural"),
)


def _kind(equation: Equation, active: list[Value]) -> str:
    """The kind of an equation by itself. `active` repeats operands that occur twice, because x·x is a product."""
    for trait, kind in _KIND_OF:
        if equation.has(trait):
            return kind
    if equation.has(Trait.CUSTOM):
        return "custom" if is_readable(next(_compat.closed_bodies(equation.origin))) else "unknown"
    if equation.op in (lax.scatter_add_p, lax.scatter_sub_p):
        return "add"
    if equation.op is lax.select_n_p and equation.inputs[0] not in active:
        return "structural"
    return "unknown"


def _steps(graph: Graph, nodes: list[Node]) -> list[Node | Equation]:
    """Nodes at the position of their last equation, and all equations that something outside of nodes needs."""
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
