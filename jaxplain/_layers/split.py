"""A program in two halves, cut at some of its values: up to them, and on from what is put in their place.

Both halves run the program's own equations, with the derivatives that their authors gave them, so either may be differentiated,
mapped and sharded like the program itself. What bypasses the cut is computed from the input.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._ir.graph import Equation, Graph, Value


class Site(NamedTuple):
    """Where a program is cut.

    Attributes:
        name: what a user may write for it.
        values: values of one graph: of the program's own, or of a body's.
        loops: the scans and checkpoints around that graph, outermost first.
        run: in which iteration of each scan, in order of execution. `None`: in all; the values of a scan are then stacked.
        readers: the equations that read the values from the cut; `None` for all that read them.
    """

    name: str
    values: tuple[Value, ...]
    loops: tuple[Equation, ...] = ()
    run: tuple[int, ...] | None = None
    readers: frozenset[Equation] | None = None

    @property
    def is_stacked(self) -> bool:
        """Whether it stands for all iterations of a scan at once, each of which starts anew from its own value."""
        return self.run is None and any(equation.primitive == "scan" for equation in self.loops)

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of the values, stacked where they are."""
        scans = [equation for equation in self.loops if equation.primitive == "scan"]
        lead = tuple(equation.params["length"] for equation in scans) if self.run is None else ()
        return tuple(jax.ShapeDtypeStruct((*lead, *value.shape), value.aval.dtype) for value in self.values)


class _Cut(NamedTuple):
    """A site as seen from the graph that runs: `given` takes the place of its values; without it, they are looked up."""

    site: Site
    number: int
    given: tuple | None


_Found = dict[int, tuple]


def encode(graph: Graph, sites: Sequence[Site], inputs: Sequence[Any]) -> list[tuple]:
    """The values at each site."""
    cuts = [_Cut(site, number, None) for number, site in enumerate(sites)]
    found = _run(graph, inputs, cuts, wanted=False)[1]
    return [found[number] for number in range(len(sites))]


def decode(graph: Graph, sites: Sequence[Site], given: Sequence[tuple], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of the program with `given` in place of the values at each site."""
    cuts = [_Cut(site, number, tuple(values)) for number, (site, values) in enumerate(zip(sites, given, strict=True))]
    return _run(graph, inputs, cuts, wanted=True)[0]


def _run(graph: Graph, inputs: Sequence[Any], cuts: Sequence[_Cut], *, wanted: bool) -> tuple[list[Any], _Found]:
    """The outputs of a graph (none if they are not wanted) and the values of the cuts that have none given."""
    here = [cut for cut in cuts if not cut.site.loops]
    inside: dict[Equation, list[_Cut]] = {}
    for cut in cuts:
        if cut.site.loops:
            inside.setdefault(cut.site.loops[0], []).append(cut)
    replaced: dict[Value, Any] = {}
    entering: dict[tuple[Equation, Value], Any] = {}
    for cut in here:
        for value, given in zip(cut.site.values, cut.given or (), strict=False):
            if cut.site.readers is None:
                replaced[value] = given
            else:
                entering.update(((reader, value), given) for reader in cut.site.readers)
    ends = [*(graph.outputs if wanted else ()), *(v for cut in here if cut.given is None for v in cut.site.values)]
    needed = set(ends) - set(replaced)
    running = set()
    for equation in reversed(graph.equations):
        if equation in inside or needed.intersection(equation.outputs):
            running.add(equation)
            needed.update(v for v in equation.inputs if v not in replaced and (equation, v) not in entering)

    values = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True)), **replaced}
    found: _Found = {}
    for equation in graph.equations:
        # Effects (a debug print) happen in each half that knows what they are about.
        if equation not in running and not (equation.origin.effects and all(v in values for v in equation.inputs)):
            continue
        arguments = [entering[equation, v] if (equation, v) in entering else values[v] for v in equation.inputs]
        with _compat.context(equation.origin, equation.scopes):
            if equation in inside:
                is_read = not needed.isdisjoint(equation.outputs)
                outputs, new = _through(equation, arguments, inside[equation], wanted=is_read)
                found.update(new)
            else:
                outputs = _compat.bind(equation.origin, arguments)
        # Without outputs where nothing reads them.
        values.update((v, out) for v, out in zip(equation.outputs, outputs, strict=False) if v not in replaced)
    found.update((cut.number, tuple(values[v] for v in cut.site.values)) for cut in here if cut.given is None)
    return [values[v] for v in graph.outputs] if wanted else [], found


def _through(equation: Equation, inputs: list[Any], cuts: list[_Cut], *, wanted: bool) -> tuple[Sequence[Any], _Found]:
    """The same for a scan or a checkpoint around the cuts."""
    cuts = [cut._replace(site=cut.site._replace(loops=cut.site.loops[1:])) for cut in cuts]
    if equation.primitive == "scan":
        return _scan(equation, inputs, cuts, wanted=wanted)
    (body,) = equation.bodies

    def again(inputs: list, given: list) -> tuple[list, _Found]:
        return _run(body, inputs, _with(cuts, given), wanted=wanted)

    params = equation.params
    return jax.checkpoint(again, prevent_cse=params["prevent_cse"], policy=params["policy"])(inputs, _given(cuts))


def _given(cuts: list[_Cut]) -> list[tuple | None]:
    return [cut.given for cut in cuts]


def _with(cuts: list[_Cut], given: list) -> list[_Cut]:
    return [cut._replace(given=values) for cut, values in zip(cuts, given, strict=True)]


def _scan(equation: Equation, inputs: list[Any], cuts: list[_Cut], *, wanted: bool) -> tuple[Sequence[Any], _Found]:
    """A scan: iterations that are cut run on their own, stretches between them as scans."""
    (body,) = equation.bodies
    length, reverse, unroll = (equation.params[name] for name in ("length", "reverse", "unroll"))
    n_consts, n_carry = _compat.scan_counts(equation.origin)
    consts, carry, scanned = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
    stacked = [cut for cut in cuts if cut.site.run is None]
    single: dict[int, list[_Cut]] = {}
    for cut in cuts:
        if cut.site.run is not None:
            first, *rest = cut.site.run
            single.setdefault(first, []).append(cut._replace(site=cut.site._replace(run=tuple(rest))))
    pieces: list[tuple[list, _Found]] = []  # what is stacked, in order of execution
    found: _Found = {}

    def stretch(carry: list, start: int, stop: int) -> list:
        def step(carry: list, slices: tuple[list, list]) -> tuple[list, tuple[list, _Found]]:
            outputs, seen = _run(body, [*consts, *carry, *slices[0]], _with(stacked, slices[1]), wanted=True)
            return outputs[:n_carry], (outputs[n_carry:], seen)

        low, high = (length - stop, length - start) if reverse else (start, stop)
        part = jax.tree.map(lambda leaf: leaf[low:high], (scanned, _given(stacked)))
        carry, piece = lax.scan(step, carry, part, length=stop - start, reverse=reverse, unroll=unroll)
        pieces.append(piece)
        return carry

    def iteration(carry: list, time: int, *, wanted: bool) -> list:
        at = length - 1 - time if reverse else time
        slices, given = jax.tree.map(lambda leaf: leaf[at], (scanned, _given(stacked)))
        cuts_here = [*_with(stacked, given), *single[time]]
        outputs, seen = _run(body, [*consts, *carry, *slices], cuts_here, wanted=wanted)
        found.update((cut.number, seen.pop(cut.number)) for cut in single[time] if cut.given is None)
        pieces.append(jax.tree.map(lambda leaf: leaf[None], (outputs[n_carry:], seen)))
        return outputs[:n_carry]

    goes_on = wanted or bool(stacked)
    time = 0
    for stop in sorted(single):
        carry = stretch(carry, time, stop) if time < stop else carry
        carry = iteration(carry, stop, wanted=goes_on or stop < max(single))
        time = stop + 1
    if not goes_on:
        return [], found
    carry = stretch(carry, time, length) if time < length else carry
    parts = pieces[::-1] if reverse else pieces
    ys, seen = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return [*carry, *ys], {**found, **seen}
