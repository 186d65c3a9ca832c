"""The default layer of a class activation map: the last map that every path from the input to the score passes through.

For example, in conv -> relu -> conv -> relu -> mean over rows and columns -> dense, backwards from the score:

    dense   (10,)           no places
    mean    (64,)           mixes places: before it, every place of a map has a gradient
    relu    (7, 7, 64)      every path passes through it, and it is a map with channels: the default layer
"""

from jaxplain import _compat
from jaxplain._analysis.activity import ACTIVE, Activity
from jaxplain._ir.graph import Equation, Graph, Value
from jaxplain._ir.primitives import Trait
from jaxplain._layers.axes import CHANNEL, AxisOrigins
from jaxplain._layers.split import CutPoint


def last_maps(origins: AxisOrigins) -> list[CutPoint]:
    """For each input that has one, the last map that every path from the input to the score passes through.

    A later equation mixes its places, so that the gradient is not confined to one place.
    """
    found = (_last_map(origins, origins.graph, value) for value in origins.graph.inputs)
    return [point for point in found if point is not None]


def _last_map(origins: AxisOrigins, graph: Graph, start: Value) -> CutPoint | None:
    relevant = between(graph, start, origins.activity)
    waists = _waists(graph, start, relevant)
    mixes = False  # whether a later equation mixes places; otherwise only the selected place has a gradient
    maps: list[CutPoint] = []
    for equation in reversed(relevant):
        waist = waists.get(equation)
        if mixes and waist is not None and _is_layer(origins, waist):
            maps.append(CutPoint(_name(waist), (waist,)))
        if equation in origins.mixing and not mixes:
            mixes = True
            if equation.bodies and (point := _in_body(origins, equation, waists, start)) is not None:
                return point
    if mixes and _is_layer(origins, start):
        maps.append(CutPoint(_name(start), (start,)))
    # A later map of fewer axes was averaged over rows, for example; max returns the last of the widest.
    return max(maps, key=lambda point: _n_axes(origins, point.values[0]), default=None)


def _n_axes(origins: AxisOrigins, value: Value) -> int:
    """How many axes of the input the places of a map come from."""
    found = origins.map_of(value)
    return 0 if found is None else sum(len(origin.of) for _, origin in found.places)


def _is_layer(origins: AxisOrigins, value: Value) -> bool:
    """Whether a value is a map with channels made by weights, and not the rearranged input itself."""
    return CHANNEL in origins[value] and origins.map_of(value) is not None


def _in_body(origins: AxisOrigins, equation: Equation, waists: dict[Equation, Value], start: Value) -> CutPoint | None:
    """The last map inside a checkpoint or the last iteration of a scan, if a single (carried) value is active."""
    read = [v for v in equation.inputs if origins.activity[v] is ACTIVE]
    if equation.has(Trait.BRANCH) or len(read) != 1 or read[0] not in {start, *waists.values()}:
        return None
    (body,) = equation.bodies
    is_scan = equation.has(Trait.LOOP)
    carried = _compat.split_scan(equation.origin, body.inputs)[1] if is_scan else body.inputs
    active = [v for v in carried if origins.activity[v] is ACTIVE]
    point = _last_map(origins, body, active[0]) if len(active) == 1 else None
    if point is None:
        return None
    last = (equation.params["length"] - 1,) if is_scan else ()
    return point._replace(loops=(equation, *point.loops), run=(*last, *(point.run or ())) or None)


def _name(value: Value) -> str:
    source = value.source
    return "what enters" if source is None else source.path or source.primitive


def between(graph: Graph, start: Value, activity: dict[Value, Activity]) -> list[Equation]:
    """The equations on the paths of a derivative from `start` (or from its look-ups, for an integer) to the outputs."""
    reached, on_the_way = {start}, set()
    for equation in graph.equations:
        active = [v for v in equation.inputs if activity[v] is ACTIVE]
        # A value that depends on a float without a derivative is on no path. Look-ups by integers start paths.
        from_integers = not active and activity[start] is not ACTIVE and reached.intersection(equation.inputs)
        if from_integers or reached.intersection(active):
            on_the_way.add(equation)
            reached.update(v for v in equation.outputs if from_integers or activity[v] is ACTIVE)
    ahead = set(graph.outputs)
    relevant = []
    for equation in reversed(graph.equations):
        if equation in on_the_way and ahead.intersection(equation.outputs):
            relevant.append(equation)
            ahead.update(v for v in equation.inputs if activity[v] is ACTIVE)
    return relevant[::-1]


def _waists(graph: Graph, start: Value, relevant: list[Equation]) -> dict[Equation, Value]:
    """Equations after which every path goes through one value, because no other earlier value is read later."""
    last = {v: index for index, equation in enumerate(relevant) for v in equation.inputs}
    last.update(dict.fromkeys(graph.outputs, len(relevant)))
    alive = {start} if start in last else set()
    waists = {}
    for index, equation in enumerate(relevant):
        alive.update(v for v in equation.outputs if v in last)
        alive = {v for v in alive if last[v] > index}
        if len(alive) == 1:
            (waists[equation],) = alive
    return waists
