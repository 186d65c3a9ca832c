"""The arguments of a call: which leaves are explained, and settings brought into their shapes.

Every method works on a flat tuple of the explained float leaves ("leaves"). This module extracts them from a call and
rebuilds attributions from them.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import _checks
from jaxplain._errors import InputError, StructureError, explain_error
from jaxplain._leaves import cast_like, upcast, wide_dtype
from jaxplain._types import ArgNums, Args, Leaves, LikeInput, PyTree


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | complex) or (hasattr(value, "ndim") and value.ndim == 0)


class Arguments:
    """The arguments of one call `explain(*args)`, separated into explained float leaves and everything else.

    `argnums` names the explained arguments as in `jax.grad`. Their leaves that are not floats (masks, counts, keys) are
    held constant and get zero attribution.
    """

    def __init__(self, method: str, args: Args, argnums: ArgNums):
        self.method = method
        self.args = args
        self.single = not isinstance(argnums, Sequence)
        self.positions = argument_positions(method, args, argnums)
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
                    why="an attribution describes continuous changes of the input, and integers have none",
                    fix=(
                        "an image: explain(image.astype(jnp.float32), …)",
                        "token ids are no numbers, so explain their embeddings: "
                        'encode, decode = jx.split(score, "embed"); jx.gradient(decode)(encode(ids), ids)',
                        "name a float argument: argnums=…; pass token ids, labels and masks as other arguments",
                    ),
                )
            )

    @property
    def explained(self) -> PyTree:
        """The user's x: the explained argument, or the tuple of them if there are several argnums."""
        values = tuple(self.args[p] for p in self.positions)
        return values[0] if self.single else values

    @property
    def held(self) -> PyTree | None:
        """With the structure of x, which leaves are held constant; None if all are explained."""
        if not self._constants:
            return None
        values = self._unflatten([jnp.array(False)] * len(self.leaves), [jnp.array(True)] * len(self._constants))
        return values[0] if self.single else values

    def fill(self, leaves: Sequence[jax.Array]) -> Args:
        """The call's arguments with `leaves` in place of the explained ones."""
        values = self._unflatten(leaves, self._constants)
        args = list(self.args)
        for position, value in zip(self.positions, values, strict=True):
            args[position] = value
        return tuple(args)

    def attribution(self, leaves: Sequence[jax.Array]) -> PyTree:
        """`leaves` as an attribution, with the structure, shapes and dtypes of the explained argument."""
        zeros = [jnp.zeros_like(leaf) for leaf in map(jnp.asarray, self._constants)]
        values = self._unflatten(cast_like(leaves, self.leaves), zeros)
        return values[0] if self.single else values

    def point(self, leaves: Sequence[jax.Array]) -> PyTree:
        """`leaves` as another input: like `attribution`, but constant leaves keep their values."""
        values = self._unflatten(cast_like(leaves, self.leaves), self._constants)
        return values[0] if self.single else values

    def _unflatten(self, explained: Sequence[Any], constants: Sequence[Any]) -> tuple:
        floats, others = iter(explained), iter(constants)
        merged = iter([next(floats if chosen else others) for _, chosen in self._names])
        return tuple(jax.tree.unflatten(tree, [next(merged) for _ in leaves]) for leaves, tree in self._flat)

    def float_leaves(
        self,
        value: PyTree,
        name: str,
        *,
        batched: bool = False,
        not_negative: bool = False,
        fix: str | tuple[str, ...] = (),
    ) -> Leaves:
        """The explained leaves of `value`, which must have the structure and shapes of the explained argument.

        With `batched`, every leaf of `value` has an additional leading axis. `fix` replaces the error's suggestions.
        """
        values = (value,) if self.single else value
        if not isinstance(values, tuple) or len(values) != len(self.positions):
            raise self._mismatch(name, type(value).__name__, f"a tuple of {len(self.positions)} entries", fix=fix)
        leaves: list[jax.Array] = []
        names = iter(self._names)
        for part, (expected, tree) in zip(values, self._flat, strict=True):
            got: Any = jax.tree.structure(part)
            if got != tree:
                raise self._mismatch(name, got, tree, fix=fix)
            for leaf, (_, like) in zip(jax.tree.leaves(part), expected, strict=True):
                where, chosen = next(names)
                if not chosen:
                    continue
                if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float | complex):
                    raise self._mismatch(name, type(leaf).__name__, "numbers or arrays", where, fix)
                shape, need = jnp.shape(leaf), jnp.shape(like)
                if (shape[1:] if batched else shape) != need or (batched and not shape):
                    wanted = f"shape (n, {', '.join(map(str, need))})" if batched else f"shape {need}"
                    raise self._mismatch(name, f"shape {shape}", wanted, where, fix)
                leaves.append(self._convert(leaf, wide_dtype(jnp.asarray(like)), name, not_negative, where))
        return tuple(leaves)

    def _convert(
        self, leaf: Any, dtype: jnp.dtype, name: str, not_negative: bool, where: str | None = None
    ) -> jax.Array:
        """One leaf of a setting in the dtype of computation; refuses complex and, if told so, negative ones."""
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise InputError(
                explain_error(
                    f"{self.method}: `{name}` must be real.",
                    where=where,
                    got=str(jnp.result_type(leaf)),
                    fix="explain the real and imaginary parts as two arguments: score(re, im), argnums=(0, 1)",
                )
            )
        if not_negative:
            _checks.not_negative(self.method, name, leaf)
        is_known = not isinstance(leaf, jax.core.Tracer) and getattr(leaf, "is_fully_addressable", True)
        if is_known and not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise InputError(explain_error(f"{self.method}: `{name}` contains NaN or infinity.", where=where))
        return jnp.asarray(leaf).astype(dtype)

    def like(
        self, value: LikeInput, name: str, *, none: Callable[[jax.Array], jax.Array], not_negative: bool = False
    ) -> Leaves:
        """A setting such as `baseline` as explained leaves, in the dtype of computation.

        A scalar applies to every element; a function is called with the explained argument; anything else must have
        its exact structure and shapes. With several argnums a tuple holds one of these for each argument, and `None`
        leaves an argument unchanged: its leaves become `none(leaf)`. `not_negative` refuses values below 0.
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
                    jnp.broadcast_to(self._convert(setting, x.dtype, name, not_negative), x.shape)
                    for x in upcast(one.leaves)
                )
            else:
                leaves.extend(one.float_leaves(setting, name, not_negative=not_negative))
        return tuple(leaves)

    def _mismatch(
        self, name: str, got: object, need: object, where: str | None = None, fix: str | tuple[str, ...] = ()
    ) -> StructureError:
        return StructureError(
            explain_error(
                f"{self.method}: `{name}` does not match the explained argument.",
                where=where,
                got=got,
                need=need,
                fix=fix
                or (
                    f"a number for every element: {name}=0.0",
                    f"the same structure and shapes as x, e.g. {name}=jax.tree.map(jnp.zeros_like, x)",
                    f"a function of x: {name}=lambda x: …",
                    *((f"several references: {name}=jx.references(pool)",) if name == "baseline" else ()),
                ),
            )
        )


def argument_positions(method: str, args: Args, argnums: ArgNums) -> tuple[int, ...]:
    """The positions that `argnums` names, counted from 0; an error unless they are different arguments of this call."""
    named = argnums if isinstance(argnums, Sequence) else (argnums,)
    positions = tuple(_index(method, position) for position in named)
    distinct = {position % max(len(args), 1) for position in positions}
    if not positions or any(not -len(args) <= p < len(args) for p in positions) or len(distinct) < len(positions):
        raise InputError(
            explain_error(
                f"{method}: argnums={argnums} does not name different arguments of this call.",
                got=f"{len(args)} positional argument(s)",
                fix="count the arguments of the explained function from 0",
            )
        )
    return tuple(position % len(args) for position in positions)


def _index(method: str, position: object) -> int:
    try:
        return operator.index(position)  # type: ignore[arg-type]
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
                need="float arrays (integers and booleans among them are held constant)",
                fix="pass it as another argument, or explain its real and imaginary parts: score(re, im)",
            )
        )
    return bool(jnp.issubdtype(dtype, jnp.floating))
