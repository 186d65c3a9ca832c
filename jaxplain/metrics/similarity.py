"""Similarities of two maps: correlations, cosine, structural similarity.

All are unchanged by positive factors on either map, and NaN if a map is constant (for the cosine: zero).
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxplain._checks import checked
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import wide_dtype
from jaxplain._types import PyTree
from jaxplain.metrics._protocol import all_finite, float_map

__all__ = ["cosine", "pearson", "spearman", "ssim"]

Similarity: TypeAlias = str | Callable[[PyTree, PyTree], ArrayLike]


def spearman(a: PyTree, b: PyTree) -> jax.Array:
    """Spearman's rank correlation of two maps (arrays or pytrees); ties get their mean rank. NaN if one is constant."""
    return rank_correlation(*_vectors("metrics.similarity.spearman", a, b))


def pearson(a: PyTree, b: PyTree) -> jax.Array:
    """Pearson's correlation of two maps (arrays or pytrees). NaN if a map is constant."""
    return correlation(*_vectors("metrics.similarity.pearson", a, b))


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """The cosine of the angle between two maps (arrays or pytrees). NaN if a map is zero."""
    first, second = map(_unit, _vectors("metrics.similarity.cosine", a, b))
    return jnp.clip(jnp.vdot(first, second), -1, 1)


def ssim(a: PyTree, b: PyTree, *, window: int = 7) -> jax.Array:
    r"""Structural similarity of two maps (height, width[, channels]): the mean of
    $\frac{(2 \mu_a \mu_b + c_1)(2 \sigma_{ab} + c_2)}{(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}$.

    Means, variances and covariances (of a sample: n − 1) are taken over a square window, and their mean over all
    windows inside the map and over channels. $c_1 = (0.01 L)^2$ and $c_2 = (0.03 L)^2$. Each map is first divided by
    its largest absolute value, and L is the range of both together. NaN if a map is constant.

    The same numbers as `skimage.metrics.structural_similarity` by default (of maps scaled this way, with
    `data_range=L`, `channel_axis=-1`), whose window is uniform, 7 × 7; the paper's is Gaussian.

    References:
        Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE Transactions on
        Image Processing 13, 2004.
    """
    method = "metrics.similarity.ssim"
    leaves = [*float_map(method, "a map", a), *float_map(method, "a map", b)]
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 2 or shapes[0] != shapes[1] or len(shapes[0]) not in (2, 3) or min(shapes[0][:2]) < window:
        raise StructureError(
            explain_error(
                f"{method}: needs two maps of one image, no smaller than the window.",
                got=", ".join(map(str, map(list, shapes))),
                need=f"(height, width) or (height, width, channels), at least {window} × {window}",
                fix=(
                    "of any other shape: similarity='spearman'",
                    "a batch of them: jax.vmap(jx.metrics.similarity.ssim)(a, b)",
                ),
            )
        )
    is_constant = jnp.array([jnp.max(leaf) == jnp.min(leaf) for leaf in leaves]).any()
    first, second = (leaf / _positive(jnp.max(jnp.abs(leaf))) for leaf in leaves)
    spread = jnp.maximum(jnp.max(first), jnp.max(second)) - jnp.minimum(jnp.min(first), jnp.min(second))
    sizes = (window, window, 1)[: first.ndim]

    def mean(leaf: jax.Array) -> jax.Array:
        zero = jnp.zeros((), leaf.dtype)
        return lax.reduce_window(leaf, zero, lax.add, sizes, (1,) * leaf.ndim, "VALID") / window**2

    # Relative to the mean of each map, so that the variances lose no digits to an offset.
    offsets = jnp.mean(first), jnp.mean(second)
    a, b = first - offsets[0], second - offsets[1]
    sample = window**2 / (window**2 - 1)
    v1, v2 = (sample * jnp.maximum(mean(leaf**2) - mean(leaf) ** 2, 0) for leaf in (a, b))
    covariance = sample * (mean(a * b) - mean(a) * mean(b))
    m1, m2 = mean(a) + offsets[0], mean(b) + offsets[1]
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    similarities = (2 * m1 * m2 + c1) * (2 * covariance + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))
    return jnp.where(is_constant, jnp.nan, jnp.mean(similarities))


_SIMILARITIES: dict[str, Callable[[PyTree, PyTree], jax.Array]] = {
    "spearman": spearman,
    "pearson": pearson,
    "cosine": cosine,
    "ssim": ssim,
}


@checked()
def comparison(method: str, similarity: Similarity, absolute: bool) -> Callable[[PyTree, PyTree], jax.Array]:
    """The similarity of two maps (of their absolute values, if `absolute`), NaN if a map is not finite."""
    measured: Any = similarity if callable(similarity) else _SIMILARITIES.get(similarity)
    if measured is None:
        raise SettingError(
            explain_error(
                f"{method}: unknown `similarity`.",
                got=repr(similarity),
                need=", ".join(map(repr, _SIMILARITIES)) + ", or a function (a, b) -> number",
            )
        )

    def prepared(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        leaf = leaf.astype(wide_dtype(leaf)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return jnp.abs(leaf) if absolute else leaf

    def compare(a: PyTree, b: PyTree) -> jax.Array:
        is_finite = all_finite((*float_map(method, "the explanation", a), *float_map(method, "the explanation", b)))
        value = jnp.asarray(measured(jax.tree.map(prepared, a), jax.tree.map(prepared, b)))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise SettingError(
                explain_error(
                    f"{method}: `similarity` must return one number for two maps.",
                    got=f"{value.dtype}{list(value.shape)}",
                    need="a float scalar",
                )
            )
        return jnp.where(is_finite, value, jnp.nan)

    return compare


def _vectors(method: str, a: PyTree, b: PyTree) -> Iterator[jax.Array]:
    maps = [float_map(method, "a map", value) for value in (a, b)]
    shapes = [[leaf.shape for leaf in leaves] for leaves in maps]
    if shapes[0] != shapes[1]:
        raise StructureError(
            explain_error(f"{method}: the maps have different shapes.", got=f"{shapes[0]}, {shapes[1]}")
        )
    return (jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]) for leaves in maps)


def _positive(size: jax.Array) -> jax.Array:
    return jnp.where(size > 0, size, 1)


def _unit(a: jax.Array) -> jax.Array:
    """a / ‖a‖ without under- or overflow of the squares; NaN for zero."""
    a = a / _positive(jnp.max(jnp.abs(a), initial=0))
    length = jnp.sqrt(jnp.sum(a**2))
    return a / jnp.where(length > 0, length, jnp.nan)


def correlation(a: jax.Array, b: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Pearson's coefficient of two vectors, over the entries `where`."""
    counts = jnp.ones(a.shape, bool) if where is None else where
    lows = (jnp.min(v, where=counts, initial=jnp.inf) for v in (a, b))
    highs = (jnp.max(v, where=counts, initial=-jnp.inf) for v in (a, b))
    # The mean of equal numbers is not always that number.
    varies = jnp.array([low < high for low, high in zip(lows, highs, strict=True)]).all()
    a, b = (jnp.where(counts, v, 0) for v in (a, b))
    a, b = (v / _positive(jnp.max(jnp.abs(v), initial=0)) for v in (a, b))
    a, b = (jnp.where(counts, v - jnp.mean(v, where=counts), 0) for v in (a, b))
    return jnp.where(varies, jnp.clip(jnp.vdot(_unit(a), _unit(b)), -1, 1), jnp.nan)


def rank_correlation(a: jax.Array, b: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Spearman's coefficient of two vectors, over the entries `where`."""
    counts = jnp.ones(a.shape, bool) if where is None else where
    is_finite = jnp.all(jnp.isfinite(a) & jnp.isfinite(b), where=counts)
    # Ranked above all others, excluded entries shift the other ranks by a constant.
    a, b = (jnp.where(counts, v, jnp.inf) for v in (a, b))
    return jnp.where(is_finite, correlation(_ranks(a), _ranks(b), counts), jnp.nan)


def _ranks(a: jax.Array) -> jax.Array:
    """Ranks, averaged over equal numbers, and centered so that they are exact in float32."""
    ordered = jnp.sort(a)
    below = jnp.searchsorted(ordered, a, side="left")
    above = a.size - jnp.searchsorted(ordered, a, side="right")
    return (below - above).astype(a.dtype)
