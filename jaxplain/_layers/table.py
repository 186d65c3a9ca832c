"""Nodes as rows of a table: printed by `jx.layers`, and the argument of a predicate over layers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxplain._analysis.nodes import Node


class NodeRow(NamedTuple):
    """One node of a score.

    Attributes:
        path: Name scopes of the layer, joined by "/"; empty where the model has none (NNX: see `jx.nnx.named`).
        kind: Kind of the node, as in a composite's selectors.
        shape: Shape of its output.
        position: "first", "last", "first last" or "".
        rule: Name of its rule; "" for `layers`, "missing" if no rule fits.
        source: The user's source line.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    position: str
    rule: str
    source: str


class Nodes(tuple[NodeRow, ...]):
    """Rows, one for each node in program order; prints as a table."""

    def __repr__(self) -> str:
        return table(NodeRow._fields, [(*row[:2], list(row.shape), *row[3:]) for row in self])


def row(node: Node, rule: str) -> NodeRow:
    position = " ".join(word for word, holds in (("first", node.is_first), ("last", node.is_last)) if holds)
    return NodeRow(node.path, node.kind, node.shape, position, rule, node.source)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    cells = [list(column) for column in zip(*cells, strict=True) if any(column[1:])] or [list(header)]
    widths = [max(map(len, column)) for column in cells]
    lines = zip(*cells, strict=True)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
