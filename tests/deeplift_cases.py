"""What the tests of DeepLIFT share: a small network's arrays, the rules, and the gap of a sum."""

import jax
import numpy as np
from jax import lax

import jaxplain as jx

W, W2 = (jax.random.normal(jax.random.key(i), (6, 5)) for i in (0, 1))
U = jax.random.normal(jax.random.key(2), (5, 5))
V = jax.random.normal(jax.random.key(3), (5,))
X, B = (jax.random.normal(jax.random.key(i), (6,)) for i in (4, 5))
# (rule, fallback)
RULES = (("rescale", None), ("reveal_cancel", "rescale"), ("genomics_default", None))


def gap(score, x, *args, **settings):
    """What is missing of summation to delta, relative to max(|Δf|, Σ|contribution|)."""
    return missing(*jax.jit(jx.with_info(jx.deeplift(score, **settings)))(x, *args))


def missing(attribution, info):
    """The same of an attribution and its info."""
    total = sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(attribution))
    size = max(abs(float(info.value - info.baseline_value)), total)
    assert np.isfinite(size) and size > 0
    return abs(float(info.gap)) / size


def layer_norm(x):
    return (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)
