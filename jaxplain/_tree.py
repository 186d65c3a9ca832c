"""Which leaves of a call are explained, and how settings are laid out beside them.

Every method works on a flat tuple of the explained float leaves ("leaves"); this module takes a call apart
into that tuple and puts attributions back together.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._errors import InputError, SettingError, StructureError, explain_error

Leaves: TypeAlias = tuple[jax.Array, ...]


def compute_dtype(leaf: jax.Array) -> jnp.dtype:
    """Attributions are computed in float32 or better, whatever the input's dtype."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def upcast(leaves: Leaves) -> Leaves:
    return tuple(leaf.astype(compute_dtype(leaf)) for leaf in leaves)


def cast_like(leaves: Sequence[jax.Array], like: Leaves) -> Leaves:
    return tuple(leaf.astype(other.dtype) for leaf, other in zip(leaves, like, strict=True))


def multiply(a: Leaves, b: Leaves) -> Leaves:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def subtract(a: Leaves, b: Leaves) -> Leaves:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def beside(x: Leaves, point: Leaves) -> Leaves:
    """`point`, unchanged, but mapped by `vmap` wherever x is, and unknown to the compiler.

    A constant point with a mapped label would index an unmapped output with a mapped index, which JAX refuses on meshes
    with Explicit axes; and XLA would spend seconds on evaluating the network at it while compiling.
    """
    chosen = lax.optimization_barrier(jnp.array(True))
    return tuple(jnp.where(chosen, p, jnp.broadcast_to(a, p.shape)) for a, p in zip(x, point, strict=True))


def total(leaves: Sequence[jax.Array]) -> jax.Array:
    """The sum over every element of every leaf."""
    return sum((jnp.sum(leaf) for leaf in leaves[1:]), start=jnp.sum(leaves[0]))


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | complex) or (hasattr(value, "ndim") and value.ndim == 0)


def require_not_negative(method: str, name: str, value: Any) -> None:
    """Refuse a negative or NaN setting if its value is known; a traced one cannot be looked at."""
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must not be negative or NaN.",
                got=f"{np.min(np.asarray(value)):g}",
                need="at least 0",
            )
        )


class Arguments:
    """The arguments of one call `explain(*args)`, with the explained float leaves taken out.

    `argnums` names the explained arguments as in `jax.grad`. Leaves of theirs that are not floats (masks,
    counts, keys) are held constant; their attribution is zero.
    """

    def __init__(self, method: str, args: tuple, argnums: int | Sequence[int]):
        self.method = method
        self.args = args
        named: Sequence[Any] = argnums if isinstance(argnums, Sequence) else (argnums,)
        self.single = named is not argnums
        positions = tuple(_index(method, p) for p in named)
        distinct = {p % max(len(args), 1) for p in positions}
        if not positions or any(not -len(args) <= p < len(args) for p in positions) or len(distinct) < len(positions):
            raise InputError(
                explain_error(
                    f"{method}: argnums={argnums} does not name different arguments of this call.",
                    got=f"{len(args)} positional argument(s)",
                    fix="call explain(x, *args) with the explained argument at position argnums",
                )
            )
        self.positions = tuple(p % len(args) for p in positions)
        self._flat = [jax.tree_util.tree_flatten_with_path(args[p]) for p in self.positions]
        self._names = [
            (f"argument {p}" + jax.tree_util.keystr(path), _is_explainable(method, p, path, leaf))
            for p, (leaves, _) in zip(self.positions, self._flat, strict=True)
            for path, leaf in leaves
        ]
        everything = [leaf for leaves, _ in self._flat for _, leaf in leaves]
        self.leaves: Leaves = tuple(
            jnp.asarray(leaf) for leaf, (_, chosen) in zip(everything, self._names, strict=True) if chosen
        )
        self._constants = [leaf for leaf, (_, chosen) in zip(everything, self._names, strict=True) if not chosen]
        if not self.leaves:
            dtypes = sorted({str(jnp.result_type(leaf)) for leaf in everything}) or ["no array at all"]
            raise InputError(
                explain_error(
                    f"{method}: the explained argument holds no float array.",
                    where=f"argument {self.positions[0]}",
                    got=", ".join(dtypes),
                    need="a float array, or a pytree with at least one",
                    why="an attribution follows how the score changes with the input, and between integers there is nothing",
                    fix=(
                        "convert: explain(image.astype(jnp.float32), …)",
                        "name a float argument: argnums=…; token ids, labels and masks go in the others",
                        "explain the embeddings: write the score as a function of table[ids]",
                    ),
                )
            )

    @property
    def explained(self) -> Any:
        """What the user calls x: the explained argument, or the tuple of them."""
        values = tuple(self.args[p] for p in self.positions)
        return values[0] if self.single else values

    def fill(self, leaves: Sequence[jax.Array]) -> tuple:
        """The call's arguments with `leaves` in place of the explained ones."""
        values = self._unflatten(leaves, self._constants)
        args = list(self.args)
        for position, value in zip(self.positions, values, strict=True):
            args[position] = value
        return tuple(args)

    def attribution(self, leaves: Sequence[jax.Array]) -> Any:
        """`leaves` as an attribution: structure, shapes and dtypes of the explained argument."""
        zeros = [jnp.zeros_like(leaf) for leaf in map(jnp.asarray, self._constants)]
        values = self._unflatten(cast_like(leaves, self.leaves), zeros)
        return values[0] if self.single else values

    def point(self, leaves: Sequence[jax.Array]) -> Any:
        """`leaves` as another input: like `attribution`, but constant leaves keep their values."""
        values = self._unflatten(cast_like(leaves, self.leaves), self._constants)
        return values[0] if self.single else values

    def _unflatten(self, explained: Sequence[Any], constants: Sequence[Any]) -> tuple:
        floats, others = iter(explained), iter(constants)
        merged = iter([next(floats if chosen else others) for _, chosen in self._names])
        return tuple(jax.tree.unflatten(tree, [next(merged) for _ in leaves]) for leaves, tree in self._flat)

    def float_leaves(self, value: Any, name: str, *, batched: bool = False) -> Leaves:
        """The explained leaves of `value`, which must have the structure and shapes of the explained argument.

        With `batched`, every leaf of `value` has one more leading axis.
        """
        values = (value,) if self.single else value
        if not isinstance(values, tuple) or len(values) != len(self.positions):
            raise self._mismatch(name, f"{type(value).__name__}", f"a tuple of {len(self.positions)} entries")
        leaves: list[jax.Array] = []
        names = iter(self._names)
        for part, (expected, tree) in zip(values, self._flat, strict=True):
            got: Any = jax.tree.structure(part)
            if got != tree:
                raise self._mismatch(name, got, tree)
            for leaf, (_, like) in zip(jax.tree.leaves(part), expected, strict=True):
                where, chosen = next(names)
                if not chosen:
                    continue
                shape, need = jnp.shape(leaf), jnp.shape(like)
                if (shape[1:] if batched else shape) != need or (batched and not shape):
                    wanted = f"shape (n, {', '.join(map(str, need))})" if batched else f"shape {need}"
                    raise self._mismatch(name, f"shape {shape}", wanted, where)
                leaves.append(self._convert(leaf, compute_dtype(jnp.asarray(like)), name, where))
        return tuple(leaves)

    def _convert(self, leaf: Any, dtype: jnp.dtype, name: str, where: str | None = None) -> jax.Array:
        """A leaf of a setting in the compute dtype; refuses one that it cannot hold or that is out of range."""
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise InputError(
                explain_error(
                    f"{self.method}: `{name}` must be real.",
                    where=where,
                    got=str(jnp.result_type(leaf)),
                    fix="explain the real and imaginary parts as two arguments: score(re, im), argnums=(0, 1)",
                )
            )
        if name == "noise":
            require_not_negative(self.method, name, leaf)
        return jnp.asarray(leaf).astype(dtype)

    def like(self, value: Any, name: str, *, none: Callable[[jax.Array], jax.Array]) -> Leaves:
        """A setting (`baseline`, `noise`) laid out beside the explained leaves, in the compute dtype.

        A scalar means every element; a function is called with the explained argument; otherwise the exact
        structure and shapes are required. With several argnums a tuple holds one of these for each argument, and
        `None` leaves an argument alone: its leaves become `none(leaf)`.
        """
        if self.single or _is_scalar(value) or not isinstance(value, tuple):
            per_argument = (value,) * len(self.positions)
        else:
            per_argument = value
        if len(per_argument) != len(self.positions):
            raise self._mismatch(name, f"{len(per_argument)} entries", f"{len(self.positions)} entries")
        leaves: list[jax.Array] = []
        for position, part in zip(self.positions, per_argument, strict=True):
            one = Arguments(self.method, self.args, position)
            setting = part(self.args[position]) if callable(part) else part
            if setting is None and not self.single:
                leaves.extend(none(leaf) for leaf in upcast(one.leaves))
            elif _is_scalar(setting):
                leaves.extend(
                    jnp.broadcast_to(self._convert(setting, x.dtype, name), x.shape) for x in upcast(one.leaves)
                )
            else:
                leaves.extend(one.float_leaves(setting, name))
        return tuple(leaves)

    def _mismatch(self, name: str, got: object, need: object, where: str | None = None) -> StructureError:
        fixes: tuple[str, ...] = (
            f"a number for every element: {name}=0.0",
            f"the same structure and shapes as x, e.g. {name}=jax.tree.map(jnp.zeros_like, x)",
            f"a function of x: {name}=lambda x: …",
        )
        if name == "references":
            fixes = (
                "stack them like a batch of x: jx.references(x_train[:100]); from a function: one reference like x",
            )
        elif name == "inner attribution":
            fixes = (
                f"an explainer, not the score: jx.{self.method}(jx.gradient(score))",
                "smooth first, reduce channels after: saliency without channel_axis inside, then .max(axis=-1)",
            )
        return StructureError(
            explain_error(
                f"{self.method}: `{name}` does not match the explained argument.",
                where=where,
                got=got,
                need=need,
                fix=fixes,
            )
        )


def _index(method: str, position: Any) -> int:
    try:
        return operator.index(position)
    except TypeError:
        raise InputError(
            explain_error(f"{method}: `argnums` must be an integer or a tuple of integers.", got=repr(position))
        ) from None


def _is_explainable(method: str, position: int, path: Any, leaf: Any) -> bool:
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        dtype = None
    if dtype is None or jnp.issubdtype(dtype, jnp.complexfloating):
        raise InputError(
            explain_error(
                f"{method}: cannot explain a leaf that is not a real array.",
                where=f"argument {position}{jax.tree_util.keystr(path)}",
                got=type(leaf).__name__ if dtype is None else str(dtype),
                need="float arrays (integers and booleans beside them are held constant)",
                fix="pass it as another argument, or explain its real and imaginary parts: score(re, im)",
            )
        )
    return _is_float(leaf)
