"""The protocol of metrics that explain again: at other inputs, with other weights, for other classes.

`metric(explain, **settings) -> measure`, `measure(x, *args, key=key) -> value`: any callable that explains will do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._checks import one_key
from jaxplain._errors import InputError, SettingError, explain_error
from jaxplain._explainer import require_explainer
from jaxplain._leaves import upcast
from jaxplain._types import Leaves


class ExplainerMeasure:
    """What a metric of an explainer returns: call it as `measure(x, *args)`, with the arguments of the explainer.

    A pure function of its arguments for one example: `jit` and `vmap` apply to it, and so does `jx.batched`. `key` is the random key of measures that
    draw; a stochastic explainer gets a key made from it, the same one for all of its calls, so that maps differ by what is measured alone.
    """

    def __init__(self, name: str, compute: Callable[[tuple, Any], Any], *, stochastic: bool, key: jax.Array | None):
        self.method = f"metrics.{name}"
        self.__name__ = self.__qualname__ = name
        self.stochastic = stochastic
        self.needs_key = stochastic and key is None
        self._key = key if stochastic else None
        self._compute = compute

    def __call__(self, *args: Any, key: jax.Array | None = None) -> Any:
        return self._compute(args, self._checked(key))

    def _checked(self, key: jax.Array | None) -> Any:
        return one_key(self.method, self._key if key is None else key) if self.stochastic else None

    def __repr__(self) -> str:
        return f"<jaxplain measure {self.__name__}>"


# Draws of a measure take fold_in(key, 0), fold_in(key, 1), …: this number none of them reaches.
_OWN = np.uint32(2**32 - 1)


def explainer_key(explain: Callable[..., Any], key: Any) -> dict[str, jax.Array]:
    """The keyword for the explainer's own key, if it needs one."""
    return {"key": jax.random.fold_in(key, _OWN)} if getattr(explain, "needs_key", False) else {}


def require_function(method: str, name: str, f: Any) -> None:
    if not callable(f):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be a function of the explainer's arguments, (x, *args).",
                got=type(f).__name__,
            )
        )


def require_explaining(method: str, explain: Any) -> None:
    """Refuse what is no function of one example, or hides the explainer's argnums and key."""
    if not callable(explain):
        raise SettingError(
            explain_error(
                f"{method}: its first argument must be a function that explains, not its result.",
                got=type(explain).__name__,
                fix=f"jx.{method}(jx.gradient(score), …)(x, *args)",
            )
        )
    require_explainer(method, explain)


def float_map(method: str, name: str, value: Any) -> Leaves:
    """The float leaves of a result of any structure, in float32 or better; what else is in it is no degree of anything."""
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
    """The norm over all leaves, whose squares would under- or overflow for maps of unusual units; its derivative at 0 is 0."""
    if order == 1:
        return sum((jnp.sum(jnp.abs(leaf)) for leaf in leaves[1:]), start=jnp.sum(jnp.abs(leaves[0])))
    largest = lax.stop_gradient(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves])))
    scale = jnp.where(largest > 0, largest, 1)
    squares = sum((jnp.sum((leaf / scale) ** 2) for leaf in leaves[1:]), start=jnp.sum((leaves[0] / scale) ** 2))
    is_zero = squares == 0
    return jnp.where(is_zero, 0, scale * jnp.sqrt(jnp.where(is_zero, 1, squares)))
