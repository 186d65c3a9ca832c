"""Arithmetic on the explained leaves of a call, and their dtypes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._types import Leaves


def wide_dtype(value: jax.Array | jnp.dtype) -> jnp.dtype:
    """The dtype of `value`, but at least float32: the dtype in which attributions are computed.

    Not `jnp.promote_types`, which refuses bfloat16 under `jax_numpy_dtype_promotion="strict"`.
    """
    dtype = jnp.result_type(value)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if is_wide else jnp.dtype(jnp.float32)


def representable(epsilon: jax.typing.ArrayLike, dtype: jnp.dtype) -> float | jax.Array:
    """A stabilizer, but at least the smallest normal number of the dtype that it guards: 1e-9 is 0 in float16."""
    smallest = float(jnp.finfo(dtype).tiny)
    return max(epsilon, smallest) if isinstance(epsilon, int | float) else jnp.maximum(epsilon, smallest)


def pulled_back(
    pullback: Callable[..., Leaves],
    cotangents: Sequence[jax.Array],
    dtypes: Sequence[jnp.dtype],
) -> Leaves:
    """`pullback(*cotangents)` of a linear map whose outputs have the given dtypes.

    What is large for float16, for example a share R / ε, is scaled down before and up again afterwards, in float32.
    """
    if all(jnp.finfo(dtype).maxexp >= jnp.finfo(jnp.float32).maxexp for dtype in dtypes):
        return pullback(*(c.astype(dtype) for c, dtype in zip(cotangents, dtypes, strict=True)))
    sizes = [jnp.max(jnp.where(jnp.isfinite(c), jnp.abs(c), 0), initial=0) for c in upcast(cotangents)]
    # A power of two, and far below the largest number, because a pullback sums.
    scale = jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(jnp.max(jnp.stack(sizes)), 64) / 64)))
    pulled = pullback(*((c / scale).astype(dtype) for c, dtype in zip(upcast(cotangents), dtypes, strict=True)))
    return tuple(leaf * scale for leaf in upcast(pulled))


def upcast(leaves: Sequence[jax.Array]) -> Leaves:
    return tuple(leaf.astype(wide_dtype(leaf)) for leaf in leaves)


def cast_like(leaves: Sequence[jax.Array], like: Sequence[jax.Array]) -> Leaves:
    return tuple(leaf.astype(other.dtype) for leaf, other in zip(leaves, like, strict=True))


def common_dtype(*values: jax.typing.ArrayLike | jnp.dtype) -> jnp.dtype:
    """The dtype that JAX would promote the values to, also under `jax_numpy_dtype_promotion="strict"`."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)


def same_dtype(*arrays: jax.typing.ArrayLike) -> Leaves:
    """The arrays in their common dtype."""
    dtype = common_dtype(*arrays)
    return tuple(jnp.asarray(a).astype(dtype) for a in arrays)


def multiply(a: Leaves, b: Leaves) -> Leaves:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def subtract(a: Leaves, b: Leaves) -> Leaves:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def total(leaves: Sequence[jax.Array]) -> jax.Array:
    """The sum over every element of every leaf."""
    with jax.numpy_dtype_promotion("standard"):  # because leaves may differ in dtype
        return sum((jnp.sum(leaf) for leaf in leaves[1:]), start=jnp.sum(leaves[0]))


def mapped_like(x: Leaves, point: Leaves) -> Leaves:
    """Returns `point`, made to depend on `x` under `vmap` and hidden from constant folding.

    If a constant point were combined with a mapped label, an unmapped output would be indexed with a mapped index,
    which JAX refuses on meshes with Explicit axes. And XLA would spend seconds evaluating the network at it while
    compiling.
    """
    chosen = lax.optimization_barrier(jnp.array(True))
    return tuple(jnp.where(chosen, p, jnp.broadcast_to(a, p.shape)) for a, p in zip(x, point, strict=True))
