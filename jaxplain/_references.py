"""Several references (baselines) at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, count
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import mapped_like
from jaxplain._types import Baseline, Leaves, PyTree

_STACK = "stack them like a batch of x: jx.references(x_train[:100]); from a function: one reference like x"


class References:
    """A set of references, as made by `references(...)`.

    Attributes:
        pool: The references, stacked along a leading axis.
        n: Number of references drawn at random for each example, or `None` to use all.
    """

    def __init__(self, pool: PyTree, n: int | None):
        self.pool = pool
        self.n = n

    def __repr__(self) -> str:
        return f"references({jax.tree.map(jnp.shape, self.pool)}, n={self.n})"

    def leaves(self, arguments: Arguments) -> tuple[Leaves, int]:
        """The explained leaves of the pool, with one leading axis, and its size."""
        pool = arguments.float_leaves(self.pool, "references", batched=True, fix=_STACK)
        sizes = {leaf.shape[0] for leaf in pool}
        if len(sizes) != 1 or 0 in sizes:
            raise StructureError(
                explain_error(
                    f"{arguments.method}: every leaf of `references` needs the same leading axis, of length ≥ 1.",
                    got=f"lengths {sorted(sizes)}",
                )
            )
        return pool, sizes.pop()


@checked(n=count())
def references(pool: PyTree, n: int | None = None) -> References:
    """Several references instead of one baseline, stacked along a new leading axis like a batch of x.

    Arguments:
        pool: A pytree like the explained argument with an additional leading axis on every leaf; with several argnums,
            a tuple of such pytrees.
        n: Number of references drawn at random for each example, with replacement and with the explainer's key. `None`
            uses each of them once and needs no key.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> pool = jnp.array([[0.0, 0.0], [1.0, 1.0]])
        >>> explain = jx.integrated_gradients(lambda x: x[0] * x[1], baseline=jx.references(pool), n_steps=4)
        >>> print(explain(jnp.array([2.0, 2.0])))
        [1.75 1.75]
    """
    return References(pool, n)


def is_drawn(baseline: Baseline) -> bool:
    """Whether a setting `baseline` draws references, which takes a random key."""
    return isinstance(baseline, References) and baseline.n is not None


def pool_of(arguments: Arguments, baseline: Baseline, key: Any) -> tuple[Leaves, int]:
    """The references described by a setting `baseline`, as explained leaves with one leading axis, and their number."""
    if not isinstance(baseline, References):
        return tuple(b[None] for b in arguments.like(baseline, "baseline", none=lambda x: x)), 1
    if baseline.n is None:
        return baseline.leaves(arguments)
    return jax.vmap(draw(baseline, arguments))(jax.random.split(key, baseline.n)), baseline.n


def hidden(point: Leaves, x: Leaves) -> Leaves:
    """`point`, hidden from constant folding, and not mapped by `vmap` if all examples share it.

    On Explicit meshes it is mapped: see `mapped_like`.
    """
    return mapped_like(x, point) if _compat.has_explicit_axes() else tuple(lax.optimization_barrier(p) for p in point)


def draw(source: References | Callable[[jax.Array], PyTree], arguments: Arguments) -> Callable[[jax.Array], Leaves]:
    """A function key → one reference, from `references(...)` or from a user's function of a key."""
    if isinstance(source, References):
        pool, size = source.leaves(arguments)
        return lambda key: tuple(leaf[jax.random.randint(key, (), 0, size)] for leaf in pool)
    if callable(source):
        return lambda key: arguments.float_leaves(source(key), "references", fix=_STACK)
    raise SettingError(
        explain_error(
            f"{arguments.method}: `references` must be jx.references(...) or a function of a key.",
            got=type(source).__name__,
            fix=(
                "from data: references=jx.references(x_train[:100])",
                "from a distribution: references=lambda key: jax.random.uniform(key, x.shape)",
            ),
        )
    )
