"""Correlations of two vectors; NaN where one of them is constant."""

import jax
import jax.numpy as jnp


def pearson(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation coefficient of two vectors."""
    varies = (jnp.ptp(a) > 0) & (jnp.ptp(b) > 0)  # less its mean, a constant is rounding
    a, b = (v - jnp.mean(v) for v in (a, b))
    a, b = (v / jnp.where(varies, jnp.max(jnp.abs(v)), 1) for v in (a, b))  # squares of tiny numbers would be zero
    product = jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b))
    return jnp.where(varies, jnp.sum(a * b) / jnp.where(varies, product, 1), jnp.nan)


def spearman(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's rank correlation coefficient of two vectors; equal values have the mean of their ranks."""
    ranks = (average_ranks(v) for v in (a, b))
    return pearson(*ranks)


def average_ranks(v: jax.Array) -> jax.Array:
    """The rank of each entry from 0, equal entries sharing the mean of theirs."""
    ordered = jnp.sort(v)
    first, last = jnp.searchsorted(ordered, v, side="left"), jnp.searchsorted(ordered, v, side="right")
    return (first + last - 1).astype(v.dtype) / 2
