"""The only module that touches JAX internals. Differences between JAX releases are resolved here."""

import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util
from jax.interpreters import ad, batching, mlir, partial_eval

T = TypeVar("T")
_P = jex.core.primitives
# Primitives that draw random numbers. Splitting or folding a key does not.
_RANDOM = frozenset((_P.random_bits_p, _P.random_gamma_p, _P.rng_bit_generator_p, _P.rng_uniform_p, _P.threefry2x32_p))
ADD_ANY = _P.add_jaxvals_p
CHECKPOINT = _P.remat_p
CUSTOM_JVP, CUSTOM_VJP = _P.custom_jvp_call_p, _P.custom_vjp_call_p
JIT = _P.jit_p
# Until JAX 0.11; then both names stand for another primitive.
OLD_CALLS = tuple(
    _P.__dict__[f"{name}_p"] for name in ("call", "closed_call") if vars(_P).get(f"{name}_p", JIT).name == name
)
NAME = _P.name_p
SELECT_AND_SCATTER = _P.select_and_scatter_add_p
# jaxlib 0.10 runs most plain convolutions on a CPU on one thread, in an external library; 0.12 uses all threads.
ONE_THREADED_CONVOLUTIONS = tuple(map(int, jax.lib.__version__.split(".")[:2])) < (0, 11)
# Equations whose bodies may be replaced by equal programs. Those with a derivative of their own stay as they are.
_TRANSPARENT = frozenset((JIT, CHECKPOINT, lax.scan_p, lax.cond_p, lax.while_p))


def primitive(name: str) -> Any:
    """A primitive that no public module exports, by its name; None if this release of JAX does not have it."""
    return _public_or_lowered().get(name)


@cache
def _public_or_lowered() -> dict[str, Any]:
    from jax._src.interpreters.mlir import _lowerings

    public = [thing for thing in vars(lax).values() if isinstance(thing, jex.core.Primitive)]
    return {thing.name: thing for thing in (*_lowerings, *public)}


jaxpr_as_function: Callable[[Any], Callable[..., list]] = jex.core.jaxpr_as_fun


def open_jaxpr(closed: Any) -> Any:
    """The jaxpr without its constants (JAX 0.11 merged the two classes; `.jaxpr` exists on both)."""
    return closed.jaxpr


def constants(closed: Any) -> list[Any]:
    """The values of a program's constants; an open jaxpr has none."""
    return list(getattr(closed, "consts", ()))


def closed_bodies(equation: Any) -> Iterator[Any]:
    """The programs in an equation's parameters, with their constants."""
    params = equation.params
    is_while = equation.primitive is lax.while_p  # yields its condition, then its body
    for param in (params["cond_jaxpr"], params["body_jaxpr"]) if is_while else params.values():
        for body in param if isinstance(param, tuple) else (param,):
            if hasattr(body, "eqns"):
                yield body if hasattr(body, "consts") else jex.core.ClosedJaxpr(body, ())


def is_literal(atom: Any) -> bool:
    return isinstance(atom, jex.core.Literal)


def scan_counts(equation: Any) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many are carried."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # JAX 0.11 keeps three flat trees (constants, carry, scanned) instead of the counts.
    consts, carry, _ = map(list, params["ft_in"].update(tuple(range(len(equation.invars)))).unpack())
    return len(consts), len(carry)


def split_scan(equation: Any, operands: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """Splits the operands of a scan, or one item for each of them, into constants, carry and scanned operands."""
    n_consts, n_carry = scan_counts(equation)
    rest = list(operands[n_consts:])
    return list(operands[:n_consts]), rest[:n_carry], rest[n_carry:]


def split_while(equation: Any, operands: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """Splits the operands of a while loop into constants of its condition, constants of its body, and the carry."""
    n_carry = len(equation.outvars)
    n_of_body = len(equation.params["body_jaxpr"].in_avals) - n_carry
    start = len(operands) - n_carry - n_of_body
    rest = list(operands[start:])
    return list(operands[:start]), rest[:n_of_body], rest[n_of_body:]


def is_random(equation: Any) -> bool:
    return equation.primitive in _RANDOM


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs in an equation's parameters, for example the body of a scan or the branches of a cond."""
    return iter(jex.core.jaxprs_in_params(equation.params))


def read(values: dict[Any, Any], atom: Any) -> Any:
    """The value of a variable or literal, given the values of the variables."""
    return atom.val if is_literal(atom) else values[atom]


def bind(equation: Any, inputs: list[Any], rewrite: Callable[[Any], Callable[..., list]] | None = None) -> list[Any]:
    """Run one equation on new inputs. `rewrite` replaces its bodies."""
    params = equation.params
    if rewrite is not None:
        params = {name: _rewritten(value, rewrite) for name, value in params.items()}
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def staged(function: Callable[..., Any], avals: Sequence[Any], like: Any) -> Any:
    """The program of a function of arrays with these abstract values, under the settings of the equation `like`."""
    with like.ctx.manager:
        return jax.make_jaxpr(function)(*avals)


def sharding_of(aval: Any) -> Any:
    """The sharding of an abstract value that is split over an Explicit mesh axis; else None."""
    return aval.sharding if is_sharded(aval) else None


def _rewritten(param: Any, rewrite: Callable[[Any], Callable[..., list]]) -> Any:
    """A parameter of an equation, in which each jaxpr is replaced by one staged from `rewrite(jaxpr)`."""
    if isinstance(param, tuple) and param and all(hasattr(p, "eqns") for p in param):
        return tuple(_rewritten(p, rewrite) for p in param)
    if not hasattr(param, "eqns"):
        return param
    is_open = not hasattr(param, "consts")
    closed = jex.core.ClosedJaxpr(param, ()) if is_open else param
    new = jax.make_jaxpr(rewrite(closed))(*closed.in_avals)
    same = [(a.shape, a.dtype) for a in new.out_avals] == [(a.shape, a.dtype) for a in closed.out_avals]
    if not same or (is_open and new.consts):
        return param
    return open_jaxpr(new) if is_open else new


@contextmanager
def context(equation: Any, scopes: tuple | None = None) -> Iterator[None]:
    """The settings and name scopes that an equation was written under, or `scopes` in place of its own scopes.

    The entries of the stack are passed on unchanged, because each identifies one call that entered a scope.
    """
    own = source_info_util.NameStack(scopes_of(equation) if scopes is None else scopes)
    stack = source_info_util.current_name_stack() + own
    with source_info_util.user_context(equation.source_info.traceback, name_stack=stack), equation.ctx.manager:
        yield


def scopes_of(equation: Any) -> tuple:
    """The name scopes that an equation is in, and the transforms that it went through, outermost first.

    Entering a scope creates an object, so that two calls of a layer have two objects of the same name.
    """
    return equation.source_info.name_stack.stack


def is_scope(entry: Any) -> bool:
    return isinstance(entry, _SCOPE)


_SCOPE = type(source_info_util.new_name_stack("name").stack[0])


def evaluate(closed: Any, inputs: Any, run: Callable[[Any, list], list]) -> list:
    """The outputs of a program on new inputs, where `run(equation, inputs)` evaluates each equation."""
    jaxpr = open_jaxpr(closed)
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        with context(equation):
            outputs = run(equation, [read(values, atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(values, atom) for atom in jaxpr.outvars]


def can_rewrite_inside(equation: Any) -> bool:
    return equation.primitive in _TRANSPARENT


def contains(closed: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether a program contains a wanted equation outside of functions with derivatives of their own."""
    return any(
        wanted(e) or (can_rewrite_inside(e) and any(contains(j, wanted) for j in inner_jaxprs(e))) for e in closed.eqns
    )


def is_sharded(aval: Any) -> bool:
    """Whether an abstract value is split over an Explicit mesh axis."""
    return any(axis is not None for axis in getattr(getattr(aval, "sharding", None), "spec", ()))


def has_explicit_axes() -> bool:
    """Whether this code is traced for a mesh with Explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


def live_equations(closed: Any) -> list[Any]:
    """The equations that some output depends on. Bodies of nested calls are pruned, too."""
    jaxpr = open_jaxpr(closed)
    return list(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0].eqns)


def without_dead_code(closed: Any) -> Any:
    """The program without equations that no output depends on, in bodies of nested calls, too. Its inputs stay."""
    jaxpr = open_jaxpr(closed)
    kept, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return jex.core.ClosedJaxpr(kept, closed.consts)


def source_line(equation: Any, inner: Any = None) -> str:
    """The user's source line that made an equation (or one inside it), with its name scope. Only for messages."""
    scope = str(equation.source_info.name_stack)
    infos = [e.source_info for e in (equation, inner) if e is not None]
    line = next(filter(None, map(_users_line, infos)), None) or source_info_util.summarize(infos[-1])
    return f"{scope} · {line}" if scope else line


def line_inside(closed: Any, wanted: Any) -> str:
    """The user's line of an equation somewhere inside a program: its own, or that of the nearest call around it."""

    def around(closed: Any) -> list[Any] | None:
        for equation in closed.eqns:
            if equation is wanted:
                return [equation]
            for body in closed_bodies(equation):
                if (found := around(body)) is not None:
                    return [*found, equation]
        return None

    chain = around(closed) or [wanted]
    lines = filter(None, (_users_line(equation.source_info) for equation in chain))
    return next(lines, None) or source_line(chain[-1])


_LIBRARIES = (*(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")), str(Path(__file__).parent))
_PACKAGES = ("jax", "jaxlib", "flax", "haiku", "equinox", "optax", "numpy", "jaxtyping")


def _is_of_library(file: str) -> bool:
    """Whether a file belongs to a library, wherever it is installed."""
    folders = [str(Path(m.__file__).parent) for n in _PACKAGES if (m := sys.modules.get(n)) and m.__file__]
    return file.startswith((*_LIBRARIES, *folders, "<frozen")) or "site-packages" in file


def line_of(error: BaseException) -> str | None:
    """The innermost line outside of any library that an error passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_of_library(f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else None


def _users_line(source_info: Any) -> str | None:
    """The innermost line outside of any library. (JAX's own summary stops at the first frame that is not JAX's.)"""
    for frame in getattr(source_info.traceback, "frames", ()):
        if not _is_of_library(frame.file_name):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return None


def zeros_like(value: jax.Array) -> jax.Array:
    """Zeros with the sharding of a value, varying over the same `shard_map` axes."""
    return varying_like(jnp.zeros_like(value), jax.typeof(value))


def zeros_of(aval: Any) -> jax.Array:
    """Zeros of an abstract value, varying over the same `shard_map` axes, so that they can start a scan."""
    return varying_like(jnp.zeros(aval.shape, aval.dtype), aval)


def _varying_axes(aval: Any) -> frozenset:
    # Called `vma` before JAX 0.10.
    varying = getattr(getattr(aval, "manual_axis_type", None), "varying", None) or getattr(aval, "vma", None)
    return frozenset(varying or ())


def varying_like(value: jax.Array, aval: Any) -> jax.Array:
    """The value, varying over at least the `shard_map` axes of `aval`."""
    missing = tuple(_varying_axes(aval) - _varying_axes(jax.typeof(value)))
    return lax.pcast(value, missing, to="varying") if missing else value


def forward_only(value: jax.Array, message: str) -> jax.Array:
    """The identity, except that transposing it (reverse mode) raises `TransformError(message)`."""
    return _forward_only_p.bind(value, message=message)


def _refuse_transpose(_cotangent: Any, _operand: Any, *, message: str) -> Any:
    from jaxplain._errors import TransformError

    raise TransformError(message)


def _batch(operands: Any, dims: Any, *, message: str) -> Any:
    return _forward_only_p.bind(*operands, message=message), dims[0]


_forward_only_p = jex.core.Primitive("jaxplain_forward_only")
_forward_only_p.def_impl(lambda value, **_: value)
_forward_only_p.def_abstract_eval(lambda aval, **_: aval)
ad.deflinear2(_forward_only_p, _refuse_transpose)
batching.primitive_batchers[_forward_only_p] = _batch
mlir.register_lowering(_forward_only_p, lambda _context, value, **_: [value])
