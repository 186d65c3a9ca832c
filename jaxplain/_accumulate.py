"""Sums over many evaluations (path steps, noise samples) in bounded memory: the one loop of the library."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat


def accumulate(term: Callable[[jax.Array], Any], n: int, chunk_size: int) -> Any:
    """Σ_{i<n} term(i), with at most `chunk_size` terms alive at once.

    `term` maps a traced int32 index to a pytree of arrays. Terms of a chunk are evaluated together by `vmap`, chunks follow
    one another in a `scan`, so memory does not grow with `n`, in reverse mode neither: each chunk is recomputed there.
    The last chunk is filled up with repeats that count zero; chunk sizes are evened out to keep those few.
    """
    n_chunks = -(-n // chunk_size)
    size = -(-n // n_chunks)

    def chunk(start: jax.Array | int) -> Any:
        if size == 1:
            return term(jnp.asarray(start, jnp.int32))
        indices = start + jnp.arange(size, dtype=jnp.int32)
        terms = jax.vmap(term)(jnp.minimum(indices, n - 1))
        if n_chunks * size == n:
            return jax.tree.map(lambda t: jnp.sum(t, axis=0), terms)
        counts = indices < n
        return jax.tree.map(lambda t: jnp.sum(t, axis=0, where=counts.reshape((size,) + (1,) * (t.ndim - 1))), terms)

    if n_chunks == 1:
        return chunk(0)

    again = jax.checkpoint(chunk)  # around the chunk alone: the running sums need not be stored

    def step(sums: Any, start: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, again(start)), None

    zeros = jax.tree.map(_compat.zeros_of, jax.eval_shape(chunk, jnp.int32(0)))
    starts = size * jnp.arange(n_chunks, dtype=jnp.int32)
    return lax.scan(step, zeros, starts)[0]
