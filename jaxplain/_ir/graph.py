"""A staged program as a flat list of equations over values, the form that all analysis works on.

Calls (`jit`, and derivatives of the user's own around more than one elementwise formula) are opened, so that a function
called five times is five sets of equations, each with a state of its own. Loops, branches and checkpoints keep their
bodies as graphs.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxplain import _compat
from jaxplain._ir import primitives


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

    __slots__ = ("bodies", "caller", "inputs", "origin", "outputs", "path", "scopes")

    def __init__(self, origin: Any, inputs: Sequence[Value], scopes: tuple, caller: Any = None):
        self.origin = origin
        self.caller = caller  # the outermost call around it: inside JAX's own functions there is no line of the user's
        self.inputs = tuple(inputs)
        self.outputs = tuple(Value(variable.aval, self) for variable in origin.outvars)
        self.scopes = scopes
        self.path = "/".join(part for part, _ in _parts(scopes))
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
        if self.primitive == "broadcast_in_dim":
            return self.inputs[0].aval.size == self.outputs[0].aval.size
        if self.primitive in primitives.IDENTITY | {"optimization_barrier"}:  # some take several values at once
            return len(self.inputs) == 1
        return self.primitive in primitives.MOVES

    def __repr__(self) -> str:
        return f"{self.primitive} at {self.line}"

    def call_of(self, scope: str) -> object:
        """Which call of a scope around this equation it belongs to; the way back through a call is another one."""
        return list(_parts(self.scopes))[scope.count("/")][1]

    @property
    def line(self) -> str:
        """The user's source line, for messages."""
        return _compat.source_line(self.caller or self.origin, self.origin)


class Graph:
    """A program: equations in order, and the values of its constants (a body's constants too).

    Equal equations on equal operands in one scope are one, so that `where(x @ w > 0, x @ w, 0)` is an activation of x @ w; with
    `each_call`, in one call of a scope.
    """

    def __init__(self, each_call: bool = False) -> None:
        self.each_call = each_call
        self.inputs: tuple[Value, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}
        self._known: dict[Any, Any] = {}

    def constant(self, aval: Any, content: Any) -> Value:
        """The value of a constant: one for each array, and for each number of the program's text."""
        is_number = not isinstance(content, jax.Array) and np.ndim(content) == 0 and np.isscalar(content)
        key = (str(aval), repr(content)) if is_number else id(content)
        if key not in self._known:
            self._known[key] = Value(aval)
            self.constants[self._known[key]] = content
        return self._known[key]

    def append(self, equation: Equation) -> tuple[Value, ...]:
        """Append an equation, or find the equal one; return its outputs."""
        if equation.bodies or equation.origin.effects:
            self.equations.append(equation)
            return equation.outputs
        how: Any = tuple(sorted(equation.params.items()))
        try:
            hash(how)
        except TypeError:  # then only the same equation of one function, called twice, is known to be equal
            how = id(equation.origin)
        where = tuple(_parts(equation.scopes)) if self.each_call else equation.path
        key = (where, equation.primitive, how, equation.inputs)
        if key not in self._known:
            self._known[key] = equation.outputs
            self.equations.append(equation)
        return self._known[key]

    def users(self) -> dict[Value, list[Equation]]:
        """The equations of this graph that read each value."""
        found: dict[Value, list[Equation]] = {}
        for equation in self.equations:
            for value in dict.fromkeys(equation.inputs):
                found.setdefault(value, []).append(equation)
        return found


Axes = list[int | None]


def moved_axes(equation: Equation, axes: Axes) -> Axes | None:
    """Names of the axes of an operand, on the axes of what a move makes of it; None if that is not one to one."""
    name, old, new = equation.primitive, equation.inputs[0].shape, equation.outputs[0].shape
    if name == "transpose":
        return [axes[axis] for axis in equation.params["permutation"]]
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        # Only axes of size 1 may come or go.
        if [n for n in old if n > 1] != [n for n in new if n > 1]:
            return None
        kept = iter([axis for axis, n in zip(axes, old, strict=True) if n > 1])
        return [next(kept) if n > 1 else None for n in new]
    return axes if name in primitives.IDENTITY | {"optimization_barrier"} else None


def broadcast_axes(equation: Equation, axes: Axes) -> Axes:
    """The same for a broadcast: a new axis, or one that was of size 1, has no name."""
    (operand, *_), (output,) = equation.inputs, equation.outputs
    named: Axes = [None] * len(output.shape)
    for axis, n, place in zip(axes, operand.shape, equation.params["broadcast_dimensions"], strict=True):
        named[place] = axis if n == output.shape[place] else None
    return named


def varying_axes(value: Value) -> frozenset[int]:
    """Axes along which a value may differ."""
    equation = value.source
    every = frozenset(axis for axis, n in enumerate(value.shape) if n > 1)
    if equation is None:
        return every
    if equation.primitive == "broadcast_in_dim":
        inner = varying_axes(equation.inputs[0])
        dimensions = equation.params["broadcast_dimensions"]
        return frozenset(dimensions[axis] for axis in inner) & every
    if equation.primitive in primitives.ELEMENTWISE:
        # Operands have the rank of the output, with axes of size 1 perhaps, or none.
        return frozenset().union(*map(varying_axes, equation.inputs)) & every
    if equation.is_move:
        moved = moved_axes(equation, list(range(len(equation.inputs[0].shape))))
        if moved is not None:
            inner = varying_axes(equation.inputs[0])
            return frozenset(axis for axis, old in enumerate(moved) if old in inner) & every
    return every


Opens = Callable[[Any, Any], bool]


def flatten(
    closed: Any, scopes: tuple = (), opens: Opens | None = None, caller: Any = None, each_call: bool = False
) -> Graph:
    """The graph of a staged program. `opens(equation, body)` says which calls with a derivative of their own are opened."""
    graph = Graph(each_call)
    jaxpr = _compat.open_jaxpr(closed)
    graph.inputs = tuple(Value(variable.aval) for variable in jaxpr.invars)
    graph.outputs = _append(graph, closed, graph.inputs, scopes, opens or is_opened, caller)
    return graph


def _append(
    graph: Graph, closed: Any, inputs: Sequence[Value], scopes: tuple, opens: Opens, caller: Any
) -> tuple[Value, ...]:
    """Append the equations of `closed` on `inputs`; return the values of its outputs."""
    jaxpr = _compat.open_jaxpr(closed)
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, _compat.constants(closed), strict=True):
        values[variable] = graph.constant(variable.aval, constant)

    # A function that is called twice is staged once: its scopes are entered anew by each call.
    entered: dict[int, Any] = {}

    def look(atom: Any) -> Value:
        return graph.constant(atom.aval, atom.val) if _compat.is_literal(atom) else values[atom]

    for origin in jaxpr.eqns:
        own = [entered.setdefault(id(entry), type(entry)(*entry)) for entry in _compat.scopes_of(origin)]
        here = (*scopes, *own)
        arguments = [look(atom) for atom in origin.invars]
        name = origin.primitive.name
        body = next(_compat.closed_bodies(origin)) if name in primitives.CALLS | primitives.CUSTOM else None
        if body is not None and (name in primitives.CALLS or opens(origin, body)):
            outputs = _append(graph, body, arguments, here, opens, caller or origin)
        else:
            equation = Equation(origin, arguments, here, caller)
            if name in primitives.WITH_BODIES:
                equation.bodies = tuple(
                    flatten(body, here, opens, caller or origin, graph.each_call)
                    for body in _compat.closed_bodies(origin)
                )
            outputs = graph.append(equation)
        values.update(zip(origin.outvars, outputs, strict=True))
    return tuple(look(atom) for atom in jaxpr.outvars)


def is_opened(origin: Any, body: Any) -> bool:
    """Whether the equations of a call with a derivative of its own stand in place of it.

    One elementwise formula (relu, softplus) stays one equation: its derivative is the author's (relu′(0) = 0), unless it is
    affine (an identity that clips gradients), for the affine belongs to the layer beside it. A body that could not be
    read (a while loop, an unknown primitive) keeps its own derivative too.
    """
    return is_readable(body) and (not is_elementwise_call(origin, body) or not is_curved(body))


def opens_activations(origin: Any, body: Any) -> bool:
    """Which calls are opened where derivatives are taken: those with a nonlinearity inside; others keep their author's."""
    return is_opened(origin, body) and is_curved(body)


def is_curved(body: Any) -> bool:
    """Whether a body holds a nonlinear elementwise equation."""
    return any(e.primitive.name in primitives.CURVED or any(map(is_curved, _compat.inner_jaxprs(e))) for e in body.eqns)


def is_readable(body: Any) -> bool:
    return all(map(_is_known, body.eqns))


def is_elementwise_call(origin: Any, body: Any) -> bool:
    shapes = {variable.aval.shape for variable in (*origin.invars, *origin.outvars)} - {()}
    return len(shapes) <= 1 and len(origin.outvars) == 1 and all(map(_is_elementwise, body.eqns))


def _is_elementwise(origin: Any) -> bool:
    name = origin.primitive.name
    if name in primitives.CALLS | primitives.CUSTOM:
        return all(_is_elementwise(e) for body in _compat.inner_jaxprs(origin) for e in body.eqns)
    return name in primitives.ELEMENTWISE | primitives.IDENTITY or (
        name == "broadcast_in_dim" and origin.invars[0].aval.shape == ()
    )


def _is_known(origin: Any) -> bool:
    known = origin.primitive.name in primitives.KNOWN
    return known and all(_is_known(e) for body in _compat.inner_jaxprs(origin) for e in body.eqns)


_WRAPPED = re.compile(r"(?:vmap|jvp|transpose|remat|checkpoint|rematted_computation)\((.*)\)")


def _parts(scopes: tuple) -> Iterator[tuple[str, object]]:
    """The names that make up a path, and which entering of that name it is; without the marks of transforms."""
    is_back = False
    for entry in scopes:
        if not _compat.is_scope(entry):
            is_back |= entry.name == "transpose"
            continue
        for part in entry.name.split("/"):
            while match := _WRAPPED.fullmatch(part):
                part = match.group(1)
            is_einsum = "->" in part  # it names itself
            if part and not is_einsum and part not in ("checkpoint", "rematted_computation"):
                yield part, (id(entry), is_back)


def equations_inside(graph: Graph) -> Iterator[Equation]:
    """All equations, those of bodies too."""
    for equation in graph.equations:
        yield equation
        for body in equation.bodies:
            yield from equations_inside(body)
