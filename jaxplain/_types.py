"""The types of public signatures, and what the library reads from a function that may be one of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax

if TYPE_CHECKING:
    from jaxplain._layers.table import NodeRow
    from jaxplain._references import References

PyTree: TypeAlias = Any
"""A tree of arrays in the sense of `jax.tree`; a single array is one, too."""

Leaves: TypeAlias = tuple[jax.Array, ...]
"""The explained float leaves of a call, in the order of `jax.tree.leaves`."""

Masks: TypeAlias = tuple[jax.Array, ...]
"""For each explained leaf a boolean array of its shape."""

Args: TypeAlias = tuple[Any, ...]
"""The positional arguments of one call of a score or an explainer."""

ArgNums: TypeAlias = int | Sequence[int]
"""Positions of the explained arguments, as in `jax.grad`."""

Score: TypeAlias = Callable[..., jax.Array]
"""`score(x, *args)` → one real number for one example."""

Explain: TypeAlias = Callable[..., PyTree]
"""`explain(x, *args)` → an attribution with the structure, shapes and dtypes of x.

An `Explainer` of this library also takes `key=`; a plain function need not: see `traits`.
"""

LikeInput: TypeAlias = PyTree | Callable[[PyTree], PyTree] | tuple[Any, ...]
"""A value for every element of x: a number, a pytree with the structure and shapes of x, or a function of x.

With several argnums a tuple with one of these for each argument, where `None` leaves an argument unchanged.
"""

Baseline: TypeAlias = "LikeInput | References"
"""One reference point (`LikeInput`), or several of them: `references(...)`."""

GroupLabels: TypeAlias = LikeInput | None
"""An integer label for every feature, as a `LikeInput`; axes of length 1 broadcast. `None`: each feature is a group."""

LayerSpec: TypeAlias = str | Callable[["NodeRow"], bool]
"""One layer: its path, a glob, a tag or a position ("last conv"), or a predicate on a row of `jx.layers`."""

LayerSpecs: TypeAlias = LayerSpec | Sequence[LayerSpec] | Mapping[str, LayerSpec]
"""One layer, or several in a list, tuple or dictionary."""


class Traits(NamedTuple):
    """Properties of an explainer or measure that wrappers depend on. The defaults hold for a plain function.

    Attributes:
        argnums: Positions of the explained arguments.
        stochastic: Whether it accepts a random key.
        needs_key: Whether it must be given a random key, i.e. it is stochastic and was built without one.
        repeats_groups: Whether every feature carries its whole group's value.
    """

    argnums: ArgNums = 0
    stochastic: bool = False
    needs_key: bool = False
    repeats_groups: bool = False


def traits(f: Callable[..., Any]) -> Traits:
    """The traits of `f`, read from its attributes of the same names."""
    return Traits._make(getattr(f, name, default) for name, default in Traits._field_defaults.items())
