"""Positions: which layers come first after the explained input, and which come last before the score."""

from typing import TYPE_CHECKING, Any

from jaxplain._analysis.activity import CONSTANT, Activity
from jaxplain._analysis.nodes import LAYERS, Behind, Node
from jaxplain._ir.dataflow import Domain, backward, forward
from jaxplain._ir.graph import Equation, Value

if TYPE_CHECKING:
    from jaxplain._analysis.analyze import Analysis


def mark_first(analysis: "Analysis", activity: dict[Value, Activity]) -> list[Equation]:
    """Set `behind` of each node, and so which layers are first. Return the loops to peel.

    In these loops, some layer is first in the first iteration only. For example, in a recurrent net
    `h = tanh(h @ W + x @ U)` with h₀ = x, `h @ W` reads the input in the first iteration, and a layer's output
    afterwards.
    """
    first: dict[Node, set[Node]] = {}  # the first layers in a loop's first iteration
    inner: dict[Node, bool] = {}  # whether a loop inside it had to be peeled then
    peeled: dict[Node, bool] = {}

    def firsts(loop: Node) -> set[Node]:
        return {node for body in loop.bodies for node in body.all_nodes() if node.is_first}

    def has_inner(loop: Node) -> bool:
        return any(peeled.get(node, False) for body in loop.bodies for node in body.all_nodes())

    def transfer(node: Node | Equation, before: list[Behind]) -> list[Behind]:
        if isinstance(node, Equation):  # outside of nodes, because no derivative goes through it
            return [Behind.NOTHING] * len(node.outputs)
        node.behind = max(before[: len(node.inputs)], default=Behind.NOTHING)
        return [_passed(node, activity)] * len(node.outputs)

    def visited(loop: Node | Equation, number: int) -> None:
        if number == 0 and isinstance(loop, Node):
            first[loop], inner[loop] = firsts(loop), has_inner(loop)

    def observe(node: Node | Equation, before: list[Behind], _: Any) -> None:
        if isinstance(node, Equation):
            return
        if node.bodies:
            facts = dict(zip(node.reads, before, strict=True))
            node.behind = max((facts[value] for value in node.inputs), default=Behind.NOTHING)
        if node in first:
            is_special = bool(first[node] - firsts(node)) or (inner[node] and not has_inner(node))
            peeled[node] = is_special and bool(node.control.params["length"])

    domain = Domain(lambda _: Behind.NOTHING, transfer, max, observe=observe, visited=visited)
    forward(analysis, [Behind.MOVES] * len(analysis.inputs), domain)
    return [node.control.origin for node, is_special in peeled.items() if is_special]


def _passed(node: Node, activity: dict[Value, Activity]) -> Behind:
    """What lies between the explained input and the outputs of a node."""
    if node.kind in LAYERS:
        return Behind.LAYER if node.behind else Behind.NOTHING
    if any(activity[value] is not CONSTANT for value in node.others) or node.behind > Behind.RESCALED:
        return max(node.behind, Behind.OTHER)
    if node.kind == "structural":
        return node.behind
    return max(node.behind, Behind.RESCALED if node.kind in ("scale_shift", "sum", "max") else Behind.OTHER)


def mark_last(analysis: "Analysis") -> None:
    """Mark the layers that no other layer follows."""

    def transfer(node: Node | Equation, after: list[bool]) -> list[bool]:
        if isinstance(node, Equation):
            return [False] * len(node.inputs)
        node.is_last = node.kind in LAYERS and not any(after)
        ahead = any(after) or node.kind in LAYERS
        return [ahead] * len(node.inputs) + [False] * len(node.others)

    domain = Domain(lambda _: False, transfer, lambda a, b: a or b)
    backward(analysis, [False] * len(analysis.outputs), domain)
