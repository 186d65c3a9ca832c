"""A staged program as a flat list of equations over values, the form that all analyses work on.

Calls are replaced by their bodies, so that a function called five times is five sets of equations, each with a state of
its own. Loops, branches and checkpoints keep their bodies as graphs. For example,
`score = lambda x: jnp.sum(jax.nn.relu(x @ w))` is staged and flattened to

    jaxpr                                          graph
    c = dot_general a w                            Equation dot_general (a, w) -> c
    d = jit[name=relu jaxpr={custom_jvp_call}] c   Equation custom_jvp_call (c) -> d     the call is opened, relu is not
    e = reduce_sum d                               Equation reduce_sum (d) -> e

where a, w, c, d and e are Values. relu stays one equation because it has a derivative of its own; see `is_opened`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._ir.primitives import KNOWN, Row, Trait, row_of


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
    """One equation: the values that it reads and makes, and its bodies if it is a loop, a branch or a checkpoint."""

    __slots__ = ("bodies", "caller", "inputs", "origin", "outputs", "path", "row", "scopes")

    def __init__(self, origin: Any, inputs: Sequence[Value], scopes: tuple, caller: Any = None):
        self.origin = origin
        self.row: Row = row_of(origin.primitive)
        self.caller = caller  # the outermost call around it, which has a line of the user's
        self.inputs = tuple(inputs)
        self.outputs = tuple(Value(variable.aval, self) for variable in origin.outvars)
        self.scopes = scopes
        self.path = "/".join(part for part, _ in _parts(scopes))
        self.bodies: tuple[Graph, ...] = ()

    # As a step of a program: see `dataflow.Step`.

    @property
    def reads(self) -> tuple[Value, ...]:
        return self.inputs

    @property
    def writes(self) -> tuple[Value, ...]:
        return self.outputs

    @property
    def control(self) -> "Equation":
        return self

    @property
    def op(self) -> Any:
        """The primitive object, for example `lax.add_p`."""
        return self.origin.primitive

    @property
    def primitive(self) -> str:
        """The name of the primitive, for example "add"."""
        return self.origin.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.origin.params

    def has(self, trait: Trait) -> bool:
        """Whether the primitive has a trait."""
        return self.row.has(trait)

    @property
    def is_move(self) -> bool:
        """Whether it only rearranges the elements of its operand; `x[None]` is written as a broadcast."""
        if self.op is lax.broadcast_in_dim_p:
            return self.inputs[0].aval.size == self.outputs[0].aval.size
        if self.has(Trait.IDENTITY) or self.op is lax.optimization_barrier_p:  # some take several values at once
            return len(self.inputs) == 1
        return self.has(Trait.MOVE)

    def __repr__(self) -> str:
        return f"{self.primitive} at {self.line}"

    def call_of(self, scope: str) -> object:
        """Identifies the call of a scope around this equation. The backward pass through a call is another call."""
        return list(_parts(self.scopes))[scope.count("/")][1]

    @property
    def line(self) -> str:
        """The user's source line, for messages."""
        return _compat.source_line(self.caller or self.origin, self.origin)


class Graph:
    """A program: equations in order, and the values of its constants, including those of bodies.

    Equal equations on equal operands in one scope are one, so that `where(x @ w > 0, x @ w, 0)` is an activation of x @
    w. With `each_call`, only those in the same call of a scope are.
    """

    def __init__(self, each_call: bool = False, all_bodies: bool = False) -> None:
        self.each_call = each_call
        self.all_bodies = all_bodies
        self.inputs: tuple[Value, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}
        self._known: dict[Any, Any] = {}

    @property
    def steps(self) -> list[Equation]:
        return self.equations

    def constant(self, aval: Any, content: Any) -> Value:
        """The value of a constant; equal numbers and equal arrays share one value."""
        key = _content(aval, content)
        if key not in self._known:
            self._known[key] = Value(aval)
            self.constants[self._known[key]] = content
        return self._known[key]

    def append(self, equation: Equation) -> tuple[Value, ...]:
        """Append an equation, or find the equal one; return its outputs."""
        if equation.bodies or equation.origin.effects:
            self.equations.append(equation)
            return equation.outputs
        params: Any = tuple(sorted(equation.params.items()))
        try:
            hash(params)
        except TypeError:  # equal only to itself, for example in a function that is called twice
            params = id(equation.origin)
        where = tuple(_parts(equation.scopes)) if self.each_call else equation.path
        key = (where, equation.op, params, equation.inputs)
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


READ_UP_TO = 1 << 16  # bytes of a constant that is compared by its content; larger ones only equal themselves


def _content(aval: Any, content: Any) -> Any:
    """A key that equal constants share: `ids < 0` of NumPy makes a new, equal array each time."""
    is_hidden = isinstance(content, jax.core.Tracer) or (
        isinstance(content, jax.Array)
        and not (content.is_fully_addressable and not jnp.issubdtype(content.dtype, jax.dtypes.extended))
    )
    if is_hidden or np.size(content) * aval.dtype.itemsize > READ_UP_TO:
        return id(content)
    return str(aval), np.asarray(content).tobytes()


Axes = list[int | None]


def moved_axes(equation: Equation, axes: Axes) -> Axes | None:
    """The names of an operand's axes after a move; None if axes are merged or split."""
    name, old, new = equation.op, equation.inputs[0].shape, equation.outputs[0].shape
    if name is lax.transpose_p:
        return [axes[axis] for axis in equation.params["permutation"]]
    if equation.has(Trait.FORM):
        # Only axes of size 1 may come or go.
        if [n for n in old if n > 1] != [n for n in new if n > 1]:
            return None
        kept = iter([axis for axis, n in zip(axes, old, strict=True) if n > 1])
        return [next(kept) if n > 1 else None for n in new]
    return axes if equation.has(Trait.IDENTITY) or name is lax.optimization_barrier_p else None


def broadcast_axes(equation: Equation, axes: Axes) -> Axes:
    """The names of an operand's axes after a broadcast. New axes, and axes that had size 1, have no name."""
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
    if equation.op is lax.broadcast_in_dim_p:
        inner = varying_axes(equation.inputs[0])
        dimensions = equation.params["broadcast_dimensions"]
        return frozenset(dimensions[axis] for axis in inner) & every
    if equation.has(Trait.ELEMENTWISE):
        # Operands have the rank of the output, perhaps with axes of size 1, or rank 0.
        return frozenset().union(*map(varying_axes, equation.inputs)) & every
    if equation.is_move:
        moved = moved_axes(equation, list(range(len(equation.inputs[0].shape))))
        if moved is not None:
            inner = varying_axes(equation.inputs[0])
            return frozenset(axis for axis, old in enumerate(moved) if old in inner) & every
    return every


Opens = Callable[[Any, Any], bool]


def flatten(
    closed: Any,
    scopes: tuple = (),
    opens: Opens | None = None,
    caller: Any = None,
    each_call: bool = False,
    all_bodies: bool = False,
) -> Graph:
    """The graph of a staged program. `opens(equation, body)` selects the calls with derivatives of their own to open.

    A while loop, a `shard_map` and the like have no bodies here, because nothing can be replayed inside them.
    `all_bodies` asks for their bodies all the same, for an analysis that replays nothing.
    """
    graph = Graph(each_call, all_bodies)
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

    # A function that is called twice is staged once, but each call enters its scopes again.
    entered: dict[int, Any] = {}

    def value_of(atom: Any) -> Value:
        return graph.constant(atom.aval, atom.val) if _compat.is_literal(atom) else values[atom]

    for origin in jaxpr.eqns:
        own = [entered.setdefault(id(entry), type(entry)(*entry)) for entry in _compat.scopes_of(origin)]
        here = (*scopes, *own)
        arguments = [value_of(atom) for atom in origin.invars]
        row = row_of(origin.primitive)
        is_call = row.has(Trait.CALL) or (graph.all_bodies and _is_like_a_call(origin))
        body = next(_compat.closed_bodies(origin)) if is_call or row.has(Trait.CUSTOM) else None
        if body is not None and (is_call or opens(origin, body)):
            outputs = _append(graph, body, arguments, here, opens, caller or origin)
        elif (explicit := _explicit(graph, origin, arguments)) is not None:
            outputs = _append(graph, explicit, arguments, here, opens, caller or origin)
        else:
            equation = Equation(origin, arguments, here, caller)
            if row.has_any(Trait.BODIES) or (graph.all_bodies and origin.primitive is lax.while_p):
                equation.bodies = tuple(
                    flatten(body, here, opens, caller or origin, graph.each_call, graph.all_bodies)
                    for body in _compat.closed_bodies(origin)
                )
            outputs = graph.append(equation)
        values.update(zip(origin.outvars, outputs, strict=True))
    return tuple(value_of(atom) for atom in jaxpr.outvars)


def _explicit(graph: Graph, origin: Any, operands: Sequence[Value]) -> Any | None:
    """An equation as a program in which every broadcast is an equation; None if it is one already.

    A layer is then the same equations however its broadcasts were written. For example,

        c = mul a:(4, 3) b:(1, 3)              d = broadcast_in_dim[shape=(4, 3)] b;  c = mul a d
        c = dot_general[no axis contracted] a:(2,) b:(5,)
                                               d, e = broadcast_in_dim[shape=(2, 5)] a, b;  c = mul d e

    Numbers, masks and constants may be broadcast by the equation itself.
    """
    is_product = origin.primitive is lax.dot_general_p and not any(origin.params["dimension_numbers"][0])
    if not is_product and not row_of(origin.primitive).has(Trait.ELEMENTWISE):
        return None
    like = origin.outvars[0].aval
    if is_product:
        batches = origin.params["dimension_numbers"][1]
        return _compat.staged(lambda *v: _product(v, batches, like), [v.aval for v in operands], origin)
    implicit = [
        value.shape != like.shape and value not in graph.constants and jnp.issubdtype(value.aval.dtype, jnp.inexact)
        for value in operands
    ]
    if not any(implicit):
        return None

    def spread(*values: jax.Array) -> list[jax.Array]:
        axes = [range(len(like.shape) - v.ndim, len(like.shape)) for v in values]  # of its rank, or a number
        pairs = zip(values, axes, implicit, strict=True)
        return _compat.bind(origin, [_broadcast(v, axis, like) if is_implicit else v for v, axis, is_implicit in pairs])

    return _compat.staged(spread, [v.aval for v in operands], origin)


def _broadcast(value: jax.Array, axes: Sequence[int], like: Any) -> jax.Array:
    sharding = _compat.sharding_of(like)
    return lax.broadcast_in_dim(value, like.shape, tuple(axes), out_sharding=sharding)


def _product(factors: Sequence[jax.Array], batches: Sequence[Sequence[int]], like: Any) -> jax.Array:
    """`dot_general` without contracted axes: its axes are those of the batch, then the others of each factor."""
    n_batch = start = len(batches[0])
    spread = []
    for factor, batch in zip(factors, batches, strict=True):
        own = [axis for axis in range(factor.ndim) if axis not in batch]
        axes = (*range(n_batch), *range(start, start + len(own)))
        start += len(own)
        moved = lax.transpose(lax.convert_element_type(factor, like.dtype), (*batch, *own))
        spread.append(_broadcast(moved, axes, like))
    return lax.mul(*spread)


def _is_like_a_call(origin: Any) -> bool:
    """Whether an unknown primitive, for example `shard_map`, has one body that maps its operands to its outputs."""
    bodies = [] if origin.primitive in KNOWN or origin.primitive is lax.while_p else list(_compat.closed_bodies(origin))
    sizes = [(len(body.in_avals), len(body.out_avals)) for body in bodies]
    return sizes == [(len(origin.invars), len(origin.outvars))]


def is_opened(origin: Any, body: Any) -> bool:
    """Whether a call with a derivative of its own is replaced by its body.

    An elementwise formula (relu, softplus) stays one equation because its author chose its derivative (relu′(0) = 0).
    An affine one (for example an identity that clips gradients) is opened because it belongs to the adjacent layer. A
    body with a while loop or an unknown primitive is not opened.
    """
    return is_readable(body) and (not is_elementwise_call(origin, body) or not is_curved(body))


def opens_activations(origin: Any, body: Any) -> bool:
    """Whether a call is opened where derivatives are taken: only if it contains a nonlinearity."""
    return is_opened(origin, body) and is_curved(body)


def is_curved(body: Any) -> bool:
    """Whether a body contains a nonlinear elementwise equation."""
    return any(row_of(e.primitive).has(Trait.CURVED) or any(map(is_curved, _compat.inner_jaxprs(e))) for e in body.eqns)


def is_readable(body: Any) -> bool:
    return all(map(_is_known, body.eqns))


def is_elementwise(equation: Equation) -> bool:
    """Whether each element of its output depends on the elements at its own place alone."""
    if equation.has(Trait.CUSTOM):
        return is_elementwise_call(equation.origin, next(_compat.closed_bodies(equation.origin)))
    return equation.has(Trait.ELEMENTWISE)


def is_elementwise_call(origin: Any, body: Any) -> bool:
    shapes = {variable.aval.shape for variable in (*origin.invars, *origin.outvars)} - {()}
    return len(shapes) <= 1 and len(origin.outvars) == 1 and all(map(_is_elementwise, body.eqns))


def _is_elementwise(origin: Any) -> bool:
    row = row_of(origin.primitive)
    if row.has_any(Trait.CALL | Trait.CUSTOM):
        return all(_is_elementwise(e) for body in _compat.inner_jaxprs(origin) for e in body.eqns)
    is_spread_number = origin.primitive is lax.broadcast_in_dim_p and origin.invars[0].aval.shape == ()
    return row.has(Trait.ELEMENTWISE) or row.has(Trait.IDENTITY) or is_spread_number


def _is_known(origin: Any) -> bool:
    return origin.primitive in KNOWN and all(_is_known(e) for body in _compat.inner_jaxprs(origin) for e in body.eqns)


_WRAPPED = re.compile(r"(?:vmap|jvp|transpose|remat|checkpoint|rematted_computation)\((.*)\)")


def _parts(scopes: tuple) -> Iterator[tuple[str, object]]:
    """The names that make up a path, each with an identifier of its call, without the marks of transforms."""
    is_back = False
    for entry in scopes:
        if not _compat.is_scope(entry):
            is_back |= entry.name == "transpose"
            continue
        for part in entry.name.split("/"):
            while match := _WRAPPED.fullmatch(part):
                part = match.group(1)
            is_einsum = "->" in part  # a name that `jnp.einsum` gives itself
            if part and not is_einsum and part not in ("checkpoint", "rematted_computation"):
                yield part, (id(entry), is_back)


def equations_inside(graph: Graph) -> Iterator[Equation]:
    """All equations, including those of bodies."""
    for equation in graph.equations:
        yield equation
        for body in equation.bodies:
            yield from equations_inside(body)
