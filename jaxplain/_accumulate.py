"""Many evaluations (path steps, noise samples, masks) in bounded memory: their sum, or a small result of each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._types import PyTree


def accumulate(term: Callable[[jax.Array], PyTree], n: int, chunk_size: int) -> PyTree:
    """Σ_{i<n} term(i), with at most `chunk_size` terms in memory at once.

    `term` maps a traced int32 index to a pytree of arrays. The terms of a chunk are evaluated together by `vmap`, and
    the chunks by a `scan`, so memory does not grow with `n`. This also holds in reverse mode, because each chunk is
    recomputed. The last chunk is padded with repeats that count zero; all chunks have about the same size, so there are
    few of these. For example, n = 10 and chunk_size = 4 give chunks {0 1 2 3} {4 5 6 7} {8 9 (9) (9)}.
    """
    n_chunks, size = _chunks(n, chunk_size)

    def chunk(start: jax.Array | int) -> PyTree:
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

    recomputed = jax.checkpoint(chunk)  # of the chunk alone, because the running sums need not be stored

    def step(sums: PyTree, start: jax.Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, recomputed(start)), None

    zeros = jax.tree.map(_compat.zeros_of, jax.eval_shape(chunk, jnp.int32(0)))
    starts = size * jnp.arange(n_chunks, dtype=jnp.int32)
    return lax.scan(step, zeros, starts)[0]


def evaluate(term: Callable[[jax.Array], PyTree], n: int, chunk_size: int) -> PyTree:
    """[term(i) for i < n], stacked, with at most `chunk_size` evaluations at once. Meant for small results.

    Only the results are kept. This also holds in reverse mode, because each chunk is recomputed. The last chunk is
    padded with repeats, so that one compiled program serves all chunks.
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
    """The number of chunks and their size, as even as possible: 10 in chunks of at most 4 are 3 chunks of 4."""
    n_chunks = -(-n // chunk_size)
    return n_chunks, -(-n // n_chunks)
