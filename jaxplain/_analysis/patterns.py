"""User-defined patterns: stretches of a program that become one node."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import NamedTuple

from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir.graph import Equation, Graph, Value


class Pattern(NamedTuple):
    """Makes stretches of a program one node each, of a user-defined kind.

    Attributes:
        kind: Kind of these nodes, which a composite can select and a rule can support.
        find: `find(graph, varies)` yields the stretches, each an iterable of equations of `graph`. `varies(value)`
            tells whether a value depends on the explained input.
    """

    kind: str
    find: Callable[[Graph, Callable[[Value], bool]], Iterable[Iterable[Equation]]]


def scope(glob: str, kind: str) -> Pattern:
    """The pattern of everything under a name scope, for example `scope("block_*/attention", "attention")`."""

    def prefix(equation: Equation) -> str | None:
        parts = equation.path.split("/")
        names = ("/".join(parts[: i + 1]) for i in range(len(parts)))
        return next((name for name in names if fnmatchcase(name, glob)), None)

    def find(graph: Graph, varies: Callable[[Value], bool]) -> Iterator[list[Equation]]:
        # A layer that is applied twice is two stretches if other equations lie between them.
        varying = (e for e in graph.equations if any(map(varies, e.outputs)))
        yield from (list(run) for name, run in groupby(varying, prefix) if name is not None)

    return Pattern(kind, find)


class Region(NamedTuple):
    """A stretch of a program that a pattern found."""

    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    equations: frozenset[Equation]


def found_regions(graph: Graph, activity: dict[Value, Activity], patterns: Sequence[Pattern]) -> list[Region]:
    """The stretches that patterns find, later patterns first. One that overlaps an earlier stretch is left out."""
    found: list[Region] = []
    claimed: set[Equation] = set()
    for pattern in reversed(patterns):
        for equations in map(frozenset, pattern.find(graph, lambda value: activity[value] is not CONSTANT)):
            if equations and claimed.isdisjoint(equations):
                found.append(_region(pattern.kind, equations, graph, activity))
                claimed.update(equations)
    return found


def _region(kind: str, equations: frozenset[Equation], graph: Graph, activity: dict[Value, Activity]) -> Region:
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
