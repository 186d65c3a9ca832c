"""A staged program as a flat list of equations over values, the form that all analysis works on.

Calls (`jit`, and derivatives of the user's own around more than one elementwise formula) are opened, so that a function
called five times is five sets of equations, each with a state of its own. Loops, branches and checkpoints keep their
bodies as graphs.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxplain import _compat
from jaxplain.graph import tables


class Value:
    """One array of a program, identified by the object itself."""

    __slots__ = ("aval", "source")

    def __init__(self, aval: Any, source: "Equation | None" = None):
        self.aval = aval
        self.source = source  # the equation that makes it; None for inputs and constants

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape


class Equation:
    """One equation, with the values it reads and makes, and its bodies if it is a loop, a branch or a checkpoint."""

    __slots__ = ("bodies", "caller", "inputs", "origin", "outputs", "path")

    def __init__(self, origin: Any, inputs: Sequence[Value], path: str, caller: Any = None):
        self.origin = origin
        self.caller = caller  # the outermost call around it: inside JAX's own functions there is no line of the user's
        self.inputs = tuple(inputs)
        self.outputs = tuple(Value(variable.aval, self) for variable in origin.outvars)
        self.path = path
        self.bodies: tuple[Graph, ...] = ()

    @property
    def primitive(self) -> str:
        return self.origin.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.origin.params

    @property
    def is_move(self) -> bool:
        """Whether it only arranges the elements of its operand anew; `x[None]` is written as a broadcast."""
        is_added_axis = self.primitive == "broadcast_in_dim" and self.inputs[0].aval.size == self.outputs[0].aval.size
        return is_added_axis or self.primitive in tables.MOVES

    def __repr__(self) -> str:
        return f"{self.primitive} at {self.line}"

    @property
    def line(self) -> str:
        """The user's source line, for messages."""
        return _compat.source_line(self.caller or self.origin, self.origin)


class Graph:
    """A program: equations in order, and the values of its constants (a body's constants too)."""

    def __init__(self) -> None:
        self.inputs: tuple[Value, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}

    def users(self) -> dict[Value, list[Equation]]:
        """The equations of this graph that read each value."""
        found: dict[Value, list[Equation]] = {}
        for equation in self.equations:
            for value in dict.fromkeys(equation.inputs):
                found.setdefault(value, []).append(equation)
        return found


Opens = Callable[[Any, Any], bool]


def flatten(closed: Any, path: str = "", opens: Opens | None = None, caller: Any = None) -> Graph:
    """The graph of a staged program. `opens(equation, body)` says which calls with a derivative of their own are opened."""
    graph = Graph()
    jaxpr = _compat.open_jaxpr(closed)
    graph.inputs = tuple(Value(variable.aval) for variable in jaxpr.invars)
    graph.outputs = _append(graph, closed, graph.inputs, path, opens or is_opened, caller)
    return graph


def _append(
    graph: Graph, closed: Any, inputs: Sequence[Value], path: str, opens: Opens, caller: Any
) -> tuple[Value, ...]:
    """Append the equations of `closed` on `inputs`; return the values of its outputs."""
    jaxpr = _compat.open_jaxpr(closed)
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, _compat.constants(closed), strict=True):
        values[variable] = Value(variable.aval)
        graph.constants[values[variable]] = constant

    def look(atom: Any) -> Value:
        if not _compat.is_literal(atom):
            return values[atom]
        value = Value(atom.aval)
        graph.constants[value] = atom.val
        return value

    for origin in jaxpr.eqns:
        here = "/".join(filter(None, (path, _scope(origin))))
        arguments = [look(atom) for atom in origin.invars]
        name = origin.primitive.name
        body = next(_compat.closed_bodies(origin)) if name in tables.CALLS | tables.CUSTOM else None
        if body is not None and (name in tables.CALLS or opens(origin, body)):
            outputs = _append(graph, body, arguments, here, opens, caller or origin)
        else:
            equation = Equation(origin, arguments, here, caller)
            if name in tables.WITH_BODIES:
                equation.bodies = tuple(
                    flatten(body, here, opens, caller or origin) for body in _compat.closed_bodies(origin)
                )
            graph.equations.append(equation)
            outputs = equation.outputs
        values.update(zip(origin.outvars, outputs, strict=True))
    return tuple(look(atom) for atom in jaxpr.outvars)


def is_opened(origin: Any, body: Any) -> bool:
    """Whether the equations of a call with a derivative of its own stand in place of it.

    One elementwise formula (relu, softplus) stays one equation: its derivative is the author's (relu′(0) = 0). A body that
    could not be read (a while loop, an unknown primitive) keeps its own derivative too.
    """
    return is_readable(body) and not is_elementwise_call(origin, body)


def is_readable(body: Any) -> bool:
    return all(map(_is_known, body.eqns))


def is_elementwise_call(origin: Any, body: Any) -> bool:
    shapes = {variable.aval.shape for variable in (*origin.invars, *origin.outvars)} - {()}
    return len(shapes) <= 1 and len(origin.outvars) == 1 and all(map(_is_elementwise, body.eqns))


def _is_elementwise(origin: Any) -> bool:
    name = origin.primitive.name
    if name in tables.CALLS | tables.CUSTOM:
        return all(_is_elementwise(e) for body in _compat.inner_jaxprs(origin) for e in body.eqns)
    return name in tables.ELEMENTWISE or (name == "broadcast_in_dim" and origin.invars[0].aval.shape == ())


def _is_known(origin: Any) -> bool:
    known = origin.primitive.name in tables.KNOWN
    return known and all(_is_known(e) for body in _compat.inner_jaxprs(origin) for e in body.eqns)


_WRAPPED = re.compile(r"(?:vmap|jvp|transpose|remat|checkpoint|rematted_computation)\((.*)\)")


def _scope(origin: Any) -> str:
    """The name scopes of an equation, without the marks of the transforms that it went through."""
    parts = []
    for part in str(origin.source_info.name_stack).split("/"):
        while match := _WRAPPED.fullmatch(part):
            part = match.group(1)
        if part and part not in ("checkpoint", "rematted_computation"):
            parts.append(part)
    return "/".join(parts)


def equations_inside(graph: Graph) -> Iterator[Equation]:
    """All equations, those of bodies too."""
    for equation in graph.equations:
        yield equation
        for body in equation.bodies:
            yield from equations_inside(body)
