"""Many evaluations (path steps, noise samples, masks) in bounded memory: summed, or one small result kept of each."""

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
    n_chunks, size = _chunks(n, chunk_size)

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


def evaluate(term: Callable[[jax.Array], Any], n: int, chunk_size: int) -> Any:
    """[term(i) for i < n], stacked, with at most `chunk_size` evaluations at once: for small results of large computations.

    Only the results are kept, in reverse mode too: each chunk is recomputed there. The last chunk is filled up with repeats,
    so that there is one program for all.
    """
    if n == 0:
        return jax.tree.map(lambda t: jnp.zeros((0, *t.shape), t.dtype), jax.eval_shape(term, jnp.int32(0)))
    n_chunks, size = _chunks(n, chunk_size)
    indices = jnp.minimum(jnp.arange(n_chunks * size, dtype=jnp.int32), n - 1)
    if n_chunks == 1:
        return jax.vmap(term)(indices)
    if size == 1:
        return lax.map(jax.checkpoint(term), indices)
    chunks = lax.map(jax.checkpoint(jax.vmap(term)), indices.reshape(n_chunks, size))
    return jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:])[:n], chunks)


def _chunks(n: int, chunk_size: int) -> tuple[int, int]:
    """How many chunks, and of what size: evened out."""
    n_chunks = -(-n // chunk_size)
    return n_chunks, -(-n // n_chunks)
