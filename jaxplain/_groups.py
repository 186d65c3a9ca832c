"""Groups of features that perturbation methods and metrics replace together."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._checks import positive_int
from jaxplain._errors import InputError, SettingError, StructureError, explain_error
from jaxplain._leaves import common_dtype, same_dtype
from jaxplain._types import GroupLabels, Leaves, Masks, PyTree


class Groups(NamedTuple):
    """A label from 0 to n − 1 for each feature.

    Attributes:
        shapes: Shapes of the explained leaves.
        labels: For each leaf an integer array that broadcasts to its shape, or `None` if no feature of it has a group.
        n: Number of groups.
    """

    shapes: tuple[tuple[int, ...], ...]
    labels: tuple[jax.Array | None, ...]
    n: int

    def masks(self, group: jax.Array) -> Masks:
        """The features of one group."""
        return tuple(
            jnp.zeros(shape, bool) if labels is None else jnp.broadcast_to(jnp.equal(*same_dtype(labels, group)), shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )

    def members(self, is_chosen: jax.Array) -> Masks:
        """The features of the chosen groups; `is_chosen` has shape (n,)."""
        return tuple(
            jnp.zeros(shape, bool)
            if labels is None
            else jnp.broadcast_to(is_chosen.at[labels].get(mode="fill", fill_value=False), shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )

    def everything(self) -> Masks:
        """All features that have a group, hidden from constant folding: see `mapped_like`."""
        known = lax.optimization_barrier(jnp.array(True))
        return tuple(
            jnp.zeros(shape, bool)
            if labels is None
            else jnp.broadcast_to((labels >= 0) & (labels < self.n) & known, shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )

    def totals(self, values: Leaves) -> jax.Array:
        """The sum of `values` over the features of each group."""
        total = jnp.zeros(self.n, common_dtype(*values))
        for leaf, labels in zip(values, self.labels, strict=True):
            if labels is not None:  # axes that the labels broadcast over are summed first
                axes = tuple(a for a in range(leaf.ndim) if jnp.ndim(labels) == 0 or labels.shape[a] == 1)
                sums = jnp.sum(leaf, axis=axes, keepdims=jnp.ndim(labels) > 0)
                total = total.at[labels].add(sums.astype(total.dtype), mode="drop")
        return total

    @property
    def is_valid(self) -> jax.Array:
        """Whether all labels are in range. Traced labels cannot be checked earlier."""
        inside = [jnp.all((labels >= 0) & (labels < self.n)) for labels in self.labels if labels is not None]
        return jnp.array(inside).all()

    @property
    def is_present(self) -> jax.Array:
        """Whether any feature has the label, for each label. With traced labels, n is only an upper bound."""
        present = jnp.zeros(self.n, bool)
        for labels in self.labels:
            if labels is not None:
                present = present.at[labels].set(True, mode="drop")
        return present

    def per_feature(self, values: jax.Array) -> jax.Array:
        """The values of groups divided by their numbers of features."""
        sizes = self.totals(tuple(jnp.ones(shape, values.dtype) for shape in self.shapes))
        return values / jnp.maximum(sizes, 1)

    def turns(self, ranked: jax.Array) -> jax.Array:
        """Ranks of groups, lowest first; ties by label, groups without features last. [3., 1., 2.] → [2, 0, 1]."""
        order = jnp.argsort(jnp.where(self.is_present, ranked, jnp.inf), stable=True)
        return jnp.zeros(self.n, jnp.int32).at[order].set(jnp.arange(self.n, dtype=jnp.int32))

    def where_valid(self, value: jax.Array) -> jax.Array:
        """`value`, or NaN if a label is out of range."""
        return jnp.where(self.is_valid, value, jnp.nan)

    def spread(self, values: jax.Array, *, alone: float) -> Leaves:
        """The value of each feature's group; `alone` in leaves without groups, NaN where a label is out of range."""
        return tuple(
            jnp.full(shape, alone, values.dtype)
            if labels is None
            else jnp.broadcast_to(values.at[labels].get(mode="fill"), shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )


def patches(*lengths: int | None) -> Callable[[PyTree], PyTree]:
    """Labels of disjoint windows for a setting `groups`: `groups=jx.patches(4, 4)` groups every 4 × 4 pixels.

    Arguments:
        lengths: Lengths of a patch along the leading axes of x. **A patch spans all remaining axes**: `patches(4, 4)`
            of an image (H, W, C) covers all channels, `patches(1, 1)` makes every pixel a group, and `patches(1)` every
            token of (T, D). `None` also spans an axis, as in `patches(None, 4, 4)` of (C, H, W). If a length does not
            divide the axis, the last patches are smaller.

    Returns:
        A function x → integer labels in C order, one for each feature (axes that a patch spans have length 1). Each
        leaf of a pytree has its own patches; a leaf with fewer axes uses the leading lengths. Leaves that are not
        floats get `None`.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> print(jx.patches(2, 2)(jnp.zeros((4, 4, 3)))[..., 0])
        [[0 0 1 1]
         [0 0 1 1]
         [2 2 3 3]
         [2 2 3 3]]
    """
    for length in lengths:
        if length is not None:
            positive_int("patches", "lengths", length)
    if not lengths:
        raise SettingError(explain_error("patches: needs the lengths of a patch.", fix="jx.patches(4, 4)"))

    def labels(x: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(x)
        parts: list[np.ndarray | None] = []
        n = 0
        for leaf in leaves:
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                parts.append(None)
                continue
            part = np.zeros((1,) * jnp.ndim(leaf), int)
            for axis, (size, length) in enumerate(zip(jnp.shape(leaf), lengths, strict=False)):
                length = size if length is None else length
                index = np.arange(size) // max(length, 1)
                n_patches = index[-1] + 1 if size else 1
                ones = (1,) * (jnp.ndim(leaf) - axis - 1)
                part = part * n_patches + (index if n_patches > 1 else index[:1]).reshape(-1, *ones)
            parts.append(part + n)
            n = int(np.max(part + n, initial=n - 1)) + 1
        return jax.tree.unflatten(tree, parts)

    return labels


def groups_of(arguments: Arguments, groups: GroupLabels, n_groups: int | None) -> Groups:
    """The groups that the settings `groups` and `n_groups` describe, for the explained leaves of one call."""
    method = arguments.method
    shapes = tuple(leaf.shape for leaf in arguments.leaves)
    if n_groups is not None:
        positive_int(method, "n_groups", n_groups)
    if groups is None:  # every feature is a group
        ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
        if not ends[-1]:
            raise InputError(explain_error(f"{method}: the explained argument is empty.", got=f"shapes {shapes}"))
        ranges = (
            jnp.arange(e - math.prod(s), e, dtype=jnp.int32).reshape(s) for e, s in zip(ends, shapes, strict=True)
        )
        return Groups(shapes, tuple(ranges), ends[-1])
    groups = groups(arguments.explained) if callable(groups) else groups
    given = [
        None if labels is None else _labels(method, where, shape, labels)
        for where, shape, labels in per_leaf(arguments, "groups", groups)
    ]
    require_some(method, "groups", given, fix="labels, or groups=None to make every feature a group")
    known = [labels for labels in given if labels is not None]
    if any(isinstance(labels, jax.core.Tracer) for labels in known):
        if n_groups is None:
            raise SettingError(
                explain_error(
                    f"{method}: traced `groups` need `n_groups`.",
                    why="the number of groups determines the shape of the program, and traced labels cannot be counted",
                    fix="labels 0 … n − 1 and n_groups=n",
                )
            )
        # Labels out of range, which tracing cannot detect, all become n_groups.
        wide = [None if a is None else a.astype(int) for a in given]
        inside = [None if a is None else jnp.where((a >= 0) & (a < n_groups), a, n_groups) for a in wide]
        return Groups(shapes, tuple(inside), n_groups)
    flat = np.concatenate([np.ravel(labels) for labels in known])
    if np.min(flat, initial=0) < 0 or (n_groups is not None and np.max(flat, initial=0) >= n_groups):
        raise SettingError(
            explain_error(
                f"{method}: `groups` holds labels out of range.",
                got=f"labels from {np.min(flat)} to {np.max(flat)}",
                need="labels ≥ 0" if n_groups is None else f"labels from 0 to n_groups − 1 = {n_groups - 1}",
                fix="None instead of labels leaves a leaf or an argument unchanged",
            )
        )
    if n_groups is None:  # only labels that occur cost evaluations
        present = np.unique(flat)
        given = [None if labels is None else np.searchsorted(present, labels) for labels in given]
        n_groups = len(present)
    as_arrays = (None if labels is None else jnp.asarray(labels, jnp.int32) for labels in given)
    return Groups(shapes, tuple(as_arrays), n_groups)


def _labels(method: str, where: str, shape: tuple[int, ...], labels: Any) -> np.ndarray | jax.Array:
    """The labels of one leaf, as a NumPy array unless they are traced."""
    try:
        labels = labels if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
    except ValueError as error:
        raise StructureError(
            explain_error(
                f"{method}: `groups` must hold one label for each feature.",
                where=where,
                got=repr(labels),
                why="a list of the features of each group is not supported",
                fix="instead of [[0, 1], [2]]: groups=jnp.array([0, 0, 1])",
            )
        ) from error
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise SettingError(
            explain_error(
                f"{method}: `groups` must hold integer labels.",
                where=where,
                got=str(labels.dtype),
                fix="groups.astype(int)"
                if labels.dtype.kind in "fbc"
                else "integers for names: groups = np.unique(names, return_inverse=True)[1]",
            )
        )
    # Labels need as many axes as x. Otherwise labels (H, W) of an image (H, W, C) would be broadcast against (W, C).
    if labels.ndim and (
        labels.ndim != len(shape) or any(a not in (1, b) for a, b in zip(labels.shape, shape, strict=True))
    ):
        raise StructureError(
            explain_error(
                f"{method}: `groups` does not match the explained argument.",
                where=where,
                got=f"shape {labels.shape}",
                need=f"shape {shape}, with 1 for axes that a group spans",
                fix="a segmentation (H, W) of an image (H, W, C): groups=segments[..., None]",
            )
        )
    return labels


def per_leaf(arguments: Arguments, name: str, setting: Any) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Name, shape and setting of each explained leaf. An integer applies to all leaves; `None` leaves one unchanged."""
    if arguments.single or isinstance(setting, int):
        parts = (setting,) * len(arguments.positions)
    elif not isinstance(setting, tuple) or len(setting) != len(arguments.positions):
        raise StructureError(
            explain_error(
                f"{arguments.method}: `{name}` must be a tuple with one entry for each explained argument.",
                got=repr(setting),
                need=f"{len(arguments.positions)} entries; None leaves an argument unchanged",
            )
        )
    else:
        parts = setting
    for position, part in zip(arguments.positions, parts, strict=True):
        leaves, _ = jax.tree_util.tree_flatten_with_path(arguments.args[position])
        tree: Any = jax.tree.structure(arguments.args[position])
        try:
            settings = [part] * len(leaves) if part is None or isinstance(part, int) else tree.flatten_up_to(part)
        except ValueError as error:
            raise StructureError(
                explain_error(
                    f"{arguments.method}: `{name}` does not have the structure of the explained argument.",
                    where=f"argument {position}",
                    got=f"{type(part).__name__} ({error})",
                    need=str(tree),
                    fix=f"one entry for each leaf of x: {name}=jax.tree.map(lambda leaf: …, x); None to skip a leaf",
                )
            ) from error
        for (path, leaf), one in zip(leaves, settings, strict=True):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                yield f"argument {position}{jax.tree_util.keystr(path)}", jnp.shape(leaf), one


def require_some(method: str, name: str, parts: Sequence[object], *, fix: str) -> None:
    """Refuses a setting whose `parts`, one for each leaf, are all `None`."""
    if all(part is None for part in parts):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` leaves every part of the explained argument unchanged.",
                got="None for all of it",
                fix=fix,
            )
        )
