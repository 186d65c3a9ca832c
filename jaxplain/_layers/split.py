"""Cuts a program at some of its values into two halves: one up to them, one from other values in their place.

Both halves run the program's own equations, with their authors' derivatives, so either may be differentiated, mapped
and sharded like the program itself. Values that bypass the cut are computed from the input. For example, h cut in
`c = x @ w; h = c + x; y = h * c`:

    encode(x) = h                 runs  c, h
    decode(h, x) = y              runs  c, y      h is given, c bypasses the cut
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxplain import _compat
from jaxplain._ir.graph import Equation, Graph, Value
from jaxplain._ir.interpret import checkpointed, interpret, scan_once, scan_part, stacked
from jaxplain._ir.primitives import Trait


class CutPoint(NamedTuple):
    """A point where a program is cut.

    Attributes:
        name: Name under which a user can select it.
        values: Values of one graph, either the program's own or a body's.
        loops: Scans and checkpoints around that graph, outermost first.
        run: Iteration of each scan, in order of execution. None stands for all iterations, with stacked values.
        readers: Equations that read the values from the cut. None stands for all of their readers.
    """

    name: str
    values: tuple[Value, ...]
    loops: tuple[Equation, ...] = ()
    run: tuple[int, ...] | None = None
    readers: frozenset[Equation] | None = None

    @property
    def is_stacked(self) -> bool:
        """Whether it stands for all iterations of a scan at once, each iteration starting from its own value."""
        return self.run is None and any(equation.has(Trait.LOOP) for equation in self.loops)

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the values, with axes for the iterations of scans if they are stacked."""
        scans = [equation for equation in self.loops if equation.has(Trait.LOOP)]
        lead = tuple(equation.params["length"] for equation in scans) if self.run is None else ()
        return tuple(jax.ShapeDtypeStruct((*lead, *value.shape), value.aval.dtype) for value in self.values)


class _Cut(NamedTuple):
    """A cut point as seen from the graph that runs. `given` replaces its values; if it is None, they are looked up."""

    point: CutPoint
    number: int
    given: tuple | None


_Found = dict[int, tuple]


def encode(graph: Graph, points: Sequence[CutPoint], inputs: Sequence[Any]) -> list[tuple]:
    """The values at each cut point."""
    cuts = [_Cut(point, number, None) for number, point in enumerate(points)]
    found = _run(graph, inputs, cuts, wanted=False)[1]
    return [found[number] for number in range(len(points))]


def decode(graph: Graph, points: Sequence[CutPoint], given: Sequence[tuple], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of the program with `given` in place of the values at each cut point."""
    cuts = [_Cut(point, n, tuple(values)) for n, (point, values) in enumerate(zip(points, given, strict=True))]
    return _run(graph, inputs, cuts, wanted=True)[0]


def _run(graph: Graph, inputs: Sequence[Any], cuts: Sequence[_Cut], *, wanted: bool) -> tuple[list[Any], _Found]:
    """The outputs of a graph (none if they are not wanted) and the values of the cuts that have none given."""
    here = [cut for cut in cuts if not cut.point.loops]
    inside: dict[Equation, list[_Cut]] = {}
    for cut in cuts:
        if cut.point.loops:
            inside.setdefault(cut.point.loops[0], []).append(cut)
    replaced: dict[Value, Any] = {}
    entering: dict[tuple[Equation, Value], Any] = {}
    for cut in here:
        for value, given in zip(cut.point.values, cut.given or (), strict=False):
            if cut.point.readers is None:
                replaced[value] = given
            else:
                entering.update(((reader, value), given) for reader in cut.point.readers)
    ends = [*(graph.outputs if wanted else ()), *(v for cut in here if cut.given is None for v in cut.point.values)]
    needed = set(ends) - set(replaced)
    running = set()
    for equation in reversed(graph.equations):
        if equation in inside or needed.intersection(equation.outputs):
            running.add(equation)
            needed.update(v for v in equation.inputs if v not in replaced and (equation, v) not in entering)

    values = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True)), **replaced}
    found: _Found = {}

    def run(equation: Equation, arguments: list[Any]) -> Sequence[Any] | None:
        with _compat.context(equation.origin, equation.scopes):
            if equation not in inside:
                return _compat.bind(equation.origin, arguments)
            is_read = not needed.isdisjoint(equation.outputs)
            outputs, new = _run_around(equation, arguments, inside[equation], wanted=is_read)
        found.update(new)
        return outputs or None  # none where nothing reads them

    # Effects (a debug print) happen in each half that knows their operands.
    interpret([e for e in graph.equations if e in running or e.origin.effects], values, run, entering)
    found.update((cut.number, tuple(values[v] for v in cut.point.values)) for cut in here if cut.given is None)
    return [values[v] for v in graph.outputs] if wanted else [], found


def _run_around(
    equation: Equation, inputs: list[Any], cuts: list[_Cut], *, wanted: bool
) -> tuple[Sequence[Any], _Found]:
    """The outputs and found values, like `_run`, of a scan or a checkpoint around the cuts."""
    cuts = [cut._replace(point=cut.point._replace(loops=cut.point.loops[1:])) for cut in cuts]
    if equation.has(Trait.LOOP):
        return _scan(equation, inputs, cuts, wanted=wanted)
    (body,) = equation.bodies

    def again(inputs: list, given: list) -> tuple[list, _Found]:
        return _run(body, inputs, _with_given(cuts, given), wanted=wanted)

    return checkpointed(equation, again)(inputs, _given(cuts))


def _given(cuts: list[_Cut]) -> list[tuple | None]:
    return [cut.given for cut in cuts]


def _with_given(cuts: list[_Cut], given: list) -> list[_Cut]:
    return [cut._replace(given=values) for cut, values in zip(cuts, given, strict=True)]


def _scan(equation: Equation, inputs: list[Any], cuts: list[_Cut], *, wanted: bool) -> tuple[Sequence[Any], _Found]:
    """A scan: iterations with a cut run by themselves, and the iterations between them as scans.

    For example, 5 iterations with a cut in number 2 become a scan of 0 and 1, iteration 2, and a scan of 3 and 4.
    """
    (body,) = equation.bodies
    consts, carry, scanned = _compat.split_scan(equation.origin, inputs)
    n_carry = len(carry)
    everywhere = [cut for cut in cuts if cut.point.run is None]
    single: dict[int, list[_Cut]] = {}
    for cut in cuts:
        if cut.point.run is not None:
            first, *rest = cut.point.run
            single.setdefault(first, []).append(cut._replace(point=cut.point._replace(run=tuple(rest))))
    found: _Found = {}
    pieces: list[Any] = []  # of the stacked outputs, in order of execution

    def iteration(*values: Any, here: Sequence[_Cut] = (), wanted: bool = True) -> list[Any]:
        """The carry, then one item to be stacked: the other outputs, and the values found at cuts in all iterations."""
        *arguments, given = values
        outputs, seen = _run(body, [*consts, *arguments], [*_with_given(everywhere, given), *here], wanted=wanted)
        found.update((cut.number, seen.pop(cut.number)) for cut in here if cut.given is None)
        return [*outputs[:n_carry], (outputs[n_carry:], seen)]

    slices = [*scanned, _given(everywhere)]
    runs_to_end = wanted or bool(everywhere)
    time = 0
    for at in sorted(single):
        if time < at:
            carry, piece = scan_part(equation, iteration, carry, slices, time, at)
            pieces += piece
        once = partial(iteration, here=single[at], wanted=runs_to_end or at < max(single))
        carry, piece = scan_once(equation, once, carry, slices, at)
        pieces += jax.tree.map(lambda leaf: leaf[None], piece)
        time = at + 1
    if not runs_to_end:
        return [], found
    if time < equation.params["length"]:
        carry, piece = scan_part(equation, iteration, carry, slices, time)
        pieces += piece
    ys, seen = stacked(equation, pieces)
    return [*carry, *ys], {**found, **seen}
