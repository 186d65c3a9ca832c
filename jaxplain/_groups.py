"""Groups of features: what is replaced together, by perturbation methods and by the metrics that remove features."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._checks import positive_int
from jaxplain._errors import InputError, SettingError, StructureError, explain_error
from jaxplain._types import Leaves

Masks: TypeAlias = tuple[jax.Array, ...]  # for each explained leaf, which of its features are meant


class Groups(NamedTuple):
    """Labels 0 … n−1 of the features of each leaf; `None` for a leaf that is left alone."""

    shapes: tuple[tuple[int, ...], ...]
    labels: tuple[Any, ...]
    n: int

    def masks(self, group: jax.Array) -> Masks:
        return tuple(
            jnp.zeros(shape, bool) if labels is None else jnp.broadcast_to(labels == group, shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )

    def members(self, is_chosen: jax.Array) -> Masks:
        """The features of all groups that are chosen."""
        return tuple(
            jnp.zeros(shape, bool)
            if labels is None
            else jnp.broadcast_to(is_chosen.at[labels].get(mode="fill", fill_value=False), shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )

    def everything(self) -> Masks:
        """All features that have a group. Unknown to the compiler, which would evaluate the score there while compiling: see `beside`."""
        known = lax.optimization_barrier(jnp.array(True))
        return tuple(
            jnp.zeros(shape, bool)
            if labels is None
            else jnp.broadcast_to((labels >= 0) & (labels < self.n) & known, shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )

    def totals(self, values: Leaves) -> jax.Array:
        """For each group the sum of `values` over its features."""
        total = jnp.zeros(self.n, jnp.result_type(*values))
        for leaf, labels in zip(values, self.labels, strict=True):
            if labels is not None:  # axes that are spanned are summed first
                axes = tuple(a for a in range(leaf.ndim) if jnp.ndim(labels) == 0 or labels.shape[a] == 1)
                total = total.at[labels].add(jnp.sum(leaf, axis=axes, keepdims=jnp.ndim(labels) > 0), mode="drop")
        return total

    @property
    def is_valid(self) -> jax.Array:
        """Whether all labels exist: those that are traced cannot be refused."""
        inside = [jnp.all((labels >= 0) & (labels < self.n)) for labels in self.labels if labels is not None]
        return jnp.array(inside).all()

    @property
    def is_present(self) -> jax.Array:
        """For each label whether a feature has it: of traced labels, `n_groups` is an upper bound."""
        present = jnp.zeros(self.n, bool)
        for labels in self.labels:
            if labels is not None:
                present = present.at[labels].set(True, mode="drop")
        return present

    def per_feature(self, values: jax.Array) -> jax.Array:
        """The values of groups divided by how many features they have."""
        sizes = self.totals(tuple(jnp.ones(shape, values.dtype) for shape in self.shapes))
        return values / jnp.maximum(sizes, 1)

    def turns(self, ranked: jax.Array) -> jax.Array:
        """For each group how many go before it: the lowest first, ties by their numbers, groups that no feature has last."""
        places = jnp.argsort(jnp.where(self.is_present, ranked, jnp.inf), stable=True)
        return jnp.zeros(self.n, jnp.int32).at[places].set(jnp.arange(self.n, dtype=jnp.int32))

    def where_valid(self, value: jax.Array) -> jax.Array:
        """`value`, or NaN if there are labels that do not exist."""
        return jnp.where(self.is_valid, value, jnp.nan)

    def spread(self, values: jax.Array, *, alone: float) -> Leaves:
        """Values of groups, brought to their features; `alone` where there is no group, NaN where there is no such group."""
        return tuple(
            jnp.full(shape, alone, values.dtype)
            if labels is None
            else jnp.broadcast_to(values.at[labels].get(mode="fill"), shape)
            for shape, labels in zip(self.shapes, self.labels, strict=True)
        )


def patches(*lengths: int | None) -> Callable[[Any], Any]:
    """Labels of disjoint windows, for settings `groups`: `groups=jx.patches(4, 4)` makes every 4 × 4 pixels a group.

    Arguments:
        lengths: of a patch over the leading axes of x. **Axes that are not named are spanned whole**: `patches(4, 4)` on an image (H, W, C) covers all
            channels, `patches(1, 1)` makes every pixel a group, `patches(1)` every token of (T, D). `None` spans an axis, too: `patches(None, 4, 4)`
            on (C, H, W). Where a length does not divide, the last patches are smaller.

    Returns:
        A function x → integer labels in C order, one for each feature (axes of length 1 where they are spanned). Leaves of a pytree have patches of
        their own, a leaf of fewer axes by the leading lengths; leaves that are not floats have None.

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
        raise SettingError(explain_error("patches: the lengths of a patch are needed.", fix="jx.patches(4, 4)"))

    def labels(x: Any) -> Any:
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
                place = np.arange(size) // max(length, 1)
                places = place[-1] + 1 if size else 1
                ones = (1,) * (jnp.ndim(leaf) - axis - 1)
                part = part * places + (place if places > 1 else place[:1]).reshape(-1, *ones)
            parts.append(part + n)
            n = int(np.max(part + n, initial=n - 1)) + 1
        return jax.tree.unflatten(tree, parts)

    return labels


def groups_of(arguments: Arguments, groups: Any, n_groups: int | None) -> Groups:
    method = arguments.method
    shapes = tuple(leaf.shape for leaf in arguments.leaves)
    if n_groups is not None:
        positive_int(method, "n_groups", n_groups)
    if groups is None:  # every feature by itself
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
    require_some(method, "groups", given)
    known = [labels for labels in given if labels is not None]
    if any(isinstance(labels, jax.core.Tracer) for labels in known):
        if n_groups is None:
            raise SettingError(
                explain_error(
                    f"{method}: traced `groups` need `n_groups`.",
                    why="the number of groups fixes the shape of the compiled program, and traced labels cannot be counted",
                    fix="labels 0 … n − 1 and n_groups=n",
                )
            )
        # Any other label, of which nothing is known while tracing, becomes one that does not exist.
        wide = [None if a is None else a.astype(jnp.promote_types(a.dtype, jnp.int32)) for a in given]
        inside = [None if a is None else jnp.where((a >= 0) & (a < n_groups), a, n_groups) for a in wide]
        return Groups(shapes, tuple(inside), n_groups)
    flat = np.concatenate([np.ravel(labels) for labels in known])
    if np.min(flat, initial=0) < 0 or (n_groups is not None and np.max(flat, initial=0) >= n_groups):
        raise SettingError(
            explain_error(
                f"{method}: `groups` holds labels out of range.",
                got=f"labels from {np.min(flat)} to {np.max(flat)}",
                need="labels ≥ 0" if n_groups is None else f"labels from 0 to n_groups − 1 = {n_groups - 1}",
                fix="leave a leaf or an argument alone with None instead of a label",
            )
        )
    if n_groups is None:  # only labels that occur cost evaluations
        present = np.unique(flat)
        given = [None if labels is None else np.searchsorted(present, labels) for labels in given]
        n_groups = len(present)
    as_arrays = (None if labels is None else jnp.asarray(labels, jnp.int32) for labels in given)
    return Groups(shapes, tuple(as_arrays), n_groups)


def _labels(method: str, where: str, shape: tuple[int, ...], labels: Any) -> Any:
    """The labels of one leaf, in numpy if they are known."""
    try:
        labels = labels if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
    except ValueError as error:
        raise StructureError(
            explain_error(
                f"{method}: `groups` must hold one label for each feature.",
                where=where,
                got=repr(labels),
                why="it is no list of the features of each group",
                fix="[[0, 1], [2]] is groups=jnp.array([0, 0, 1])",
            )
        ) from error
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise SettingError(
            explain_error(
                f"{method}: `groups` must hold integer labels.",
                where=where,
                got=str(labels.dtype),
                fix="groups.astype(int)",
            )
        )
    # As many axes as x, so that the labels (H, W) of an image (H, W, C) are not taken for labels of (W, C).
    if labels.ndim and (
        labels.ndim != len(shape) or any(a not in (1, b) for a, b in zip(labels.shape, shape, strict=True))
    ):
        raise StructureError(
            explain_error(
                f"{method}: `groups` does not match the explained argument.",
                where=where,
                got=f"shape {labels.shape}",
                need=f"shape {shape}, with 1 for axes whose features belong together",
                fix="a segmentation (H, W) of an image (H, W, C): groups=segments[..., None]",
            )
        )
    return labels


def per_leaf(arguments: Arguments, name: str, setting: Any) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """For each explained leaf its name, its shape and its part of the setting; an integer is for all, `None` leaves alone."""
    if arguments.single or isinstance(setting, int):
        parts = (setting,) * len(arguments.positions)
    elif not isinstance(setting, tuple) or len(setting) != len(arguments.positions):
        raise StructureError(
            explain_error(
                f"{arguments.method}: `{name}` must be a tuple with one entry for each explained argument.",
                got=repr(setting),
                need=f"{len(arguments.positions)} entries; None leaves an argument alone",
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
                    fix=f"one entry for each leaf of x: {name}=jax.tree.map(lambda leaf: …, x); None leaves a leaf alone",
                )
            ) from error
        for (path, leaf), one in zip(leaves, settings, strict=True):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                yield f"argument {position}{jax.tree_util.keystr(path)}", jnp.shape(leaf), one


def require_some(method: str, name: str, parts: Sequence[Any]) -> None:
    if all(part is None for part in parts):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` leaves every part of the explained argument alone.",
                got="None for all of it",
                fix="window=(3, 3)" if name == "window" else "groups=None for every feature by itself, or labels",
            )
        )
