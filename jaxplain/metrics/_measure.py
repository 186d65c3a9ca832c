"""The protocol of measures that need the score: `metric(score, **settings) -> measure`, `measure(attribution, x, *args) -> value`.

A metric is written as one function `compute(call, relevance, key) -> value` over the staged score of one example and the leaves of its
attribution. Arguments, dtypes, keys and what is not finite are here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxplain._arguments import Arguments
from jaxplain._checks import one_key, require_callable
from jaxplain._errors import StructureError, explain_error
from jaxplain._explainer import Call, stage_call
from jaxplain._leaves import wide_dtype
from jaxplain._types import Leaves


class Compute(Protocol):
    def __call__(self, call: Call, relevance: Leaves, key: Any, /) -> Any: ...


class Measure:
    """What a metric of a score returns: call it as `measure(attribution, x, *args)`, with the arguments of the explained function.

    A pure function of its arguments: `jit` and `vmap` apply to it. `key` is the random key of metrics that draw. Where the attribution is not finite,
    every number of the result is NaN: a map that says nothing has no quality.
    """

    def __init__(
        self,
        name: str,
        score: Callable[..., Any],
        compute: Compute,
        *,
        argnums: int | Sequence[int],
        allow_random: bool,
        stochastic: bool,
        key: jax.Array | None,
    ):
        require_callable(f"metrics.{name}", score)
        self.__name__ = self.__qualname__ = name
        self.needs_key = stochastic and key is None
        self._key = key if stochastic else None
        self.stochastic = stochastic
        self._score, self._compute, self._argnums, self._allow_random = score, compute, argnums, allow_random

    def __call__(self, attribution: Any, x: Any, *args: Any, key: jax.Array | None = None) -> Any:
        name = f"metrics.{self.__name__}"
        if self.stochastic:
            key = one_key(name, self._key if key is None else key)
        call = stage_call(
            name,
            self._score,
            (x, *args),
            argnums=self._argnums,
            allow_random=self._allow_random,
            differentiated=False,
        )
        relevance = relevance_of(call.arguments, attribution)
        is_finite = jnp.array([jnp.isfinite(leaf).all() for leaf in relevance]).all()
        value = self._compute(call, relevance, key)
        return jax.tree.map(lambda a: jnp.where(is_finite, a, jnp.nan), value)

    def __repr__(self) -> str:
        return f"<jaxplain measure {self.__name__}>"


class CurveMeasure(Measure):
    """A measure that is a number made of a curve: `measure.curve(attribution, x, *args)` returns the curve itself."""

    def __init__(
        self, name: str, score: Callable[..., Any], compute: Compute, reduce: Callable[[Any], Any], **settings: Any
    ):
        super().__init__(name, score, compute, **settings)
        self._reduce = reduce

    def curve(self, attribution: Any, x: Any, *args: Any, key: jax.Array | None = None) -> Any:
        """What the number is made of."""
        return super().__call__(attribution, x, *args, key=key)

    def __call__(self, attribution: Any, x: Any, *args: Any, key: jax.Array | None = None) -> Any:
        return self._reduce(self.curve(attribution, x, *args, key=key))


def relevance_of(arguments: Arguments, attribution: Any) -> Leaves:
    """The attribution laid out beside the explained leaves, in float32 or better.

    A map over the places of an input with channels (a class activation map) counts for each channel in equal parts.
    """
    leaf = over_channels(attribution, arguments)
    if leaf is not None:
        return (leaf,)
    try:
        return arguments.float_leaves(attribution, "attribution")
    except StructureError as error:
        raise StructureError(
            explain_error(
                f"{arguments.method}: the attribution does not have the structure of the explained argument.",
                got=jax.tree.map(jnp.shape, attribution),
                need=f"{jax.tree.map(jnp.shape, arguments.explained)}, or a map over the places of one array",
                fix=(
                    "the order of arguments: measure(attribution, x, *args)",
                    "a batch of both: jax.vmap(measure)(attributions, xs, *args)",
                    "a map that could be over several axes: attribution[..., None]",
                ),
            )
        ) from error


def over_channels(attribution: Any, arguments: Arguments) -> jax.Array | None:
    """A map that lacks one axis of x, or has it with length 1, spread over that axis; None if it is no such map of one array."""
    is_one = arguments.single and len(arguments.leaves) == 1
    structures: list[Any] = [jax.tree.structure(tree) for tree in (attribution, arguments.explained)]
    if not is_one or structures[0] != structures[1]:
        return None
    (x,), heat = arguments.leaves, jnp.asarray(jax.tree.leaves(attribution)[0])
    if heat.ndim == 0 or jnp.issubdtype(heat.dtype, jnp.complexfloating):
        return None
    if heat.ndim == x.ndim - 1:
        axes = [a for a in range(x.ndim) if (*x.shape[:a], *x.shape[a + 1 :]) == heat.shape]
        heat = jnp.expand_dims(heat, axes[0]) if len(axes) == 1 else heat
    short = [a for a in range(min(heat.ndim, x.ndim)) if heat.shape[a] == 1 != x.shape[a]]
    if (
        heat.ndim != x.ndim
        or len(short) > 1
        or any(heat.shape[a] != x.shape[a] for a in range(x.ndim) if a not in short)
    ):
        return None
    n = x.shape[short[0]] if short else 1
    return jnp.broadcast_to(heat.astype(wide_dtype(x)) / n, x.shape)
