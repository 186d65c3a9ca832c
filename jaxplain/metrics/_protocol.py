"""The two protocols of metrics, and what they share: the random key, and the checks of maps.

- `Measure`: `metric(score, **settings) -> measure`, `measure(attribution, x, *args) -> value`. Such a metric is one
  function `compute(call, relevance, key)` of the staged score of one example and the leaves of its attribution.
- `ExplainerMeasure`: `metric(explain, **settings) -> measure`, `measure(x, *args) -> value`. Such a metric explains
  again (other inputs, other weights, another class), and is one function `compute(args, key)`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._checks import one_key, require_callable
from jaxplain._errors import InputError, SettingError, StructureError, explain_error
from jaxplain._explainer import Call, require_explainer, stage_call
from jaxplain._leaves import total, upcast, wide_dtype
from jaxplain._types import ArgNums, Args, Explain, Leaves, PyTree, Score, traits


class _Keyed:
    """A measure with its name and its random key, which it has only if it draws.

    Attributes:
        method: Name at the start of errors.
        stochastic: Whether it draws.
        needs_key: Whether calls must pass a key, because it draws and was built without one.
    """

    def __init__(self, name: str, *, stochastic: bool, key: jax.Array | None):
        self.method = f"metrics.{name}"
        self.__name__ = self.__qualname__ = name
        self.stochastic = stochastic
        self.needs_key = stochastic and key is None
        self._key = key if stochastic else None

    def _key_of_call(self, key: jax.Array | None) -> Any:
        return one_key(self.method, self._key if key is None else key) if self.stochastic else None

    def __repr__(self) -> str:
        return f"<jaxplain measure {self.__name__}>"


class Compute(Protocol):
    """The mathematics of a `Measure`; `key` is None unless the measure draws."""

    def __call__(self, call: Call, relevance: Leaves, key: Any, /) -> Any: ...


class Measure(_Keyed):
    """What a metric of a score returns: call it as `measure(attribution, x, *args)`, with the arguments of the score.

    It is a pure function of its arguments, to which `jit` and `vmap` apply. `key` is the random key of metrics that
    draw. If the attribution is not finite, every number of the result is NaN.
    """

    def __init__(
        self,
        name: str,
        score: Score,
        compute: Compute,
        *,
        argnums: ArgNums,
        allow_random: bool,
        stochastic: bool,
        key: jax.Array | None,
    ):
        super().__init__(name, stochastic=stochastic, key=key)
        require_callable(self.method, score)
        self._score, self._compute, self._argnums, self._allow_random = score, compute, argnums, allow_random

    def __call__(self, attribution: PyTree, x: PyTree, *args: Any, key: jax.Array | None = None) -> Any:
        key = self._key_of_call(key)
        call = stage_call(
            self.method,
            self._score,
            (x, *args),
            argnums=self._argnums,
            allow_random=self._allow_random,
            differentiated=False,
        )
        relevance = relevance_of(call.arguments, attribution)
        is_finite = all_finite(relevance)
        value = self._compute(call, relevance, key)
        return jax.tree.map(lambda a: jnp.where(is_finite, a, jnp.nan), value)


class CurveMeasure(Measure):
    """A measure that reduces a curve to a number: `measure.curve(attribution, x, *args)` returns the curve itself."""

    def __init__(self, name: str, score: Score, compute: Compute, reduce: Callable[[Any], jax.Array], **settings: Any):
        super().__init__(name, score, compute, **settings)
        self._reduce = reduce

    def curve(self, attribution: PyTree, x: PyTree, *args: Any, key: jax.Array | None = None) -> Any:
        """The curve that the number is made of."""
        return super().__call__(attribution, x, *args, key=key)

    def __call__(self, attribution: PyTree, x: PyTree, *args: Any, key: jax.Array | None = None) -> jax.Array:
        return self._reduce(self.curve(attribution, x, *args, key=key))


class ExplainerMeasure(_Keyed):
    """What a metric of an explainer returns: call it as `measure(x, *args)`, with the arguments of the explainer.

    It is a pure function of its arguments for one example: `jit`, `vmap` and `jx.batched` apply to it. `key` is the
    random key of measures that draw. A stochastic explainer gets a key derived from it, the same for all of its
    calls, so that maps differ only by what is measured.
    """

    def __init__(
        self, name: str, compute: Callable[[Args, Any], jax.Array], *, stochastic: bool, key: jax.Array | None
    ):
        super().__init__(name, stochastic=stochastic, key=key)
        self._compute = compute

    def __call__(self, *args: Any, key: jax.Array | None = None) -> jax.Array:
        return self._compute(args, self._key_of_call(key))


# A measure's own draws use fold_in(key, 0), fold_in(key, 1), …, and never reach this number.
_OF_EXPLAINER = np.uint32(2**32 - 1)


def explainer_key(explain: Explain, key: Any) -> dict[str, jax.Array]:
    """The keyword with the explainer's own key, if it needs one."""
    return {"key": jax.random.fold_in(key, _OF_EXPLAINER)} if traits(explain).needs_key else {}


def require_function(method: str, name: str, f: object) -> None:
    if not callable(f):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be a function of the explainer's arguments, (x, *args).",
                got=type(f).__name__,
            )
        )


def require_explaining(method: str, explain: object) -> None:
    """Refuses anything but a function of one example whose argnums and key are visible."""
    if not callable(explain):
        raise SettingError(
            explain_error(
                f"{method}: its first argument must be a function that explains, not its result.",
                got=type(explain).__name__,
                fix=f"jx.{method}(jx.gradient(score), …)(x, *args)",
            )
        )
    require_explainer(method, explain)


def relevance_of(arguments: Arguments, attribution: PyTree) -> Leaves:
    """The attribution as leaves that match the explained ones, in float32 or better.

    A map over the positions of an input with channels (a class activation map) counts for each channel in equal parts.
    """
    leaf = _over_channels(attribution, arguments)
    if leaf is not None:
        return (leaf,)
    try:
        return arguments.float_leaves(attribution, "attribution")
    except StructureError as error:
        raise StructureError(
            explain_error(
                f"{arguments.method}: the attribution does not have the structure of the explained argument.",
                got=jax.tree.map(jnp.shape, attribution),
                need=f"{jax.tree.map(jnp.shape, arguments.explained)}, or a map over the positions of one array",
                fix=(
                    "the order of arguments: measure(attribution, x, *args)",
                    "a batch of both: jax.vmap(measure)(attributions, xs, *args)",
                    "a map that could be over several axes: attribution[..., None]",
                ),
            )
        ) from error


def _over_channels(attribution: PyTree, arguments: Arguments) -> jax.Array | None:
    """A map that lacks one axis of x, or has length 1 there, spread over that axis; None for any other attribution."""
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
    if heat.ndim != x.ndim:
        return None
    short = [a for a in range(x.ndim) if heat.shape[a] == 1 != x.shape[a]]
    if len(short) > 1 or any(heat.shape[a] != x.shape[a] for a in range(x.ndim) if a not in short):
        return None
    n = x.shape[short[0]] if short else 1
    return jnp.broadcast_to(heat.astype(wide_dtype(x)) / n, x.shape)


def float_map(method: str, name: str, value: PyTree) -> Leaves:
    """The float leaves of a map of any structure, in float32 or better; other leaves are ignored."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(value)]
    floats = tuple(leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
    if not floats or any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
        raise InputError(
            explain_error(
                f"{method}: {name} must be a real array, or a pytree of them.",
                got=", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "no array at all",
            )
        )
    return upcast(floats)


def all_finite(leaves: Leaves) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def norm_of(leaves: Leaves, order: int) -> jax.Array:
    """The norm over all leaves, without under- or overflow of the squares; its derivative at 0 is 0."""
    if order == 1:
        return total(tuple(map(jnp.abs, leaves)))
    largest = lax.stop_gradient(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves])))
    scale = jnp.where(largest > 0, largest, 1)
    squares = total(tuple((leaf / scale) ** 2 for leaf in leaves))
    is_zero = squares == 0
    return jnp.where(is_zero, 0, scale * jnp.sqrt(jnp.where(is_zero, 1, squares)))
