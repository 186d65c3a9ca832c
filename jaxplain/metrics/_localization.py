"""Localization: does the map lie on the object? Measures of a map against a mask of the object.

All of them read evidence *for* the score: channels are summed, then the positive part is taken. For maps whose sign has
no meaning (gradients), pass |map|, taken before the sum over channels.

A map without positive evidence, or with NaN or infinity (for example an empty class activation map under `jit`), has
the value NaN, because it has no position; it is up to the user how to count it. An empty mask is an error, or NaN if
the mask is traced.

Other names: *relevance mass accuracy*, *attribution localization* (inside-total relevance ratio μ) and the energy-based
pointing game are `energy_inside`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxplain._checks import checked, count, number
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import wide_dtype

# measure(attribution, mask) -> a number in [0, 1]
Measure = Callable[[ArrayLike, ArrayLike], jax.Array]


@checked(tolerance=count(0))
def pointing_game(*, tolerance: int = 0) -> Measure:
    r"""Pointing game: is the strongest pixel on the object? $1$ if $\arg\max_p R(p)$ is in the mask, else $0$.

    If several pixels tie for the maximum, the share of them in the mask: the expectation over ties broken at random.

    Arguments:
        tolerance: Distance to the mask, in rows and in columns, up to which a pixel is a hit. The paper's is 15, on
            photographs.

    Returns:
        `measure(attribution, mask)`: (height, width[, channels]) and (height, width), bool → a number in [0, 1].

    Guarantees: unchanged by any increasing function of the map that leaves 0 at 0. A random map hits with the share of
    the image that is mask (widened by the tolerance).
    Differs from: a tolerance in rows and columns is a square; some implementations use a disc.
    Errors: `StructureError` for shapes that do not fit, or a mask that is not bool.

    References:
        Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int) or tolerance < 0:
        raise SettingError(
            explain_error("metrics.pointing_game: `tolerance` is a number of pixels.", got=repr(tolerance))
        )

    def measure(attribution: ArrayLike, mask: ArrayLike) -> jax.Array:
        heat, inside = _positive("metrics.pointing_game", attribution, mask)
        size = 2 * tolerance + 1
        near = lax.reduce_window(inside, False, lax.bitwise_or, (size, size), (1, 1), "SAME")
        strongest = heat == jnp.max(heat)
        hit = jnp.sum(strongest & near) / jnp.sum(strongest)
        return _where_placed(heat, inside, hit)

    return measure


def energy_inside() -> Measure:
    r"""Energy inside (energy-based pointing game, relevance mass accuracy, attribution localization):
    $\sum_{p \in \text{mask}} R^+(p) \big/ \sum_p R^+(p)$.

    Returns:
        `measure(attribution, mask)`: (height, width[, channels]) and (height, width), bool → a number in [0, 1].

    Guarantees: unchanged by a positive factor on the map. A constant map has the share of the image that is mask, which
    is the level of chance.
    Errors: `StructureError` for shapes that do not fit, or a mask that is not bool.
    Differs from: Quantus' relevance mass accuracy includes negative relevance in its sums, so that its value is
    unbounded; its attribution localization takes |R|. The weighted form in the paper of the latter divides by the level
    of chance: `measure(R, mask) / mask.mean()`.

    References:
        Wang et al., Score-CAM: score-weighted visual explanations for convolutional neural networks, CVPR workshops
        2020.
        Arras, Osman, Samek, CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural network
        explanations, Information Fusion 81, 2022.
        Kohlbrenner et al., Toward best practice in explaining neural network decisions with LRP, IJCNN 2020.
    """

    def measure(attribution: ArrayLike, mask: ArrayLike) -> jax.Array:
        heat, inside = _positive("metrics.energy_inside", attribution, mask)
        total = jnp.sum(heat)
        return _where_placed(heat, inside, jnp.sum(heat, where=inside) / jnp.where(total > 0, total, 1))

    return measure


@checked(threshold=number(0.0, 1.0))
def intersection_over_union(*, threshold: float | None = None) -> Measure:
    r"""Intersection over union $|S \cap M| / |S \cup M|$ of the map's strongest pixels S and the mask M.

    Arguments:
        threshold: S is every pixel with at least this share of the largest value, in (0, 1]; 0.2 in the paper of CAM,
            0.15 in Grad-CAM's. `None` takes as many pixels with positive evidence as the mask has, so that neither one
            bright pixel nor the spread of the map decides; pixels that tie for the last places count for equal shares.

    Returns:
        `measure(attribution, mask)`: (height, width[, channels]) and (height, width), bool → a number in [0, 1].

    Guarantees: unchanged by a positive factor on the map (`None`: by any increasing function that leaves 0 at 0).
    Differs from: the papers compare a bounding box around the largest connected segment of S with a box.
    Errors: `StructureError` for shapes that do not fit, or a mask that is not bool; `SettingError` for the threshold.

    References:
        Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
        Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV 2017.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise SettingError(
            explain_error(
                "metrics.intersection_over_union: `threshold` is a share of the largest value.", got=repr(threshold)
            )
        )

    def measure(attribution: ArrayLike, mask: ArrayLike) -> jax.Array:
        heat, inside = _positive("metrics.intersection_over_union", attribution, mask)
        if threshold is None:
            chosen = _strongest(heat, jnp.sum(inside))
        else:
            chosen = (heat >= threshold * jnp.max(heat)).astype(heat.dtype)
        both = jnp.sum(chosen, where=inside)
        union = jnp.sum(chosen) + jnp.sum(inside, dtype=heat.dtype) - both
        return _where_placed(heat, inside, both / jnp.where(union > 0, union, 1))

    return measure


@checked(k=count())
def top_k_intersection(*, k: int) -> Measure:
    r"""Top-k intersection: the share $|S_k \cap M| / k$ of the k strongest pixels that is in the mask M.

    Arguments:
        k: Number of pixels, a Python integer up to the size of the map. Pixels that tie for the last places count for
            equal shares. Pixels without positive evidence are never among the k, so a map with fewer pixels loses the
            rest.

    Returns:
        `measure(attribution, mask)`: (height, width[, channels]) and (height, width), bool → a number in [0, 1]. **For
        k above the size of the mask the maximum is |M|/k**: for masks of different sizes see
        `relevance_rank_accuracy`.

    Guarantees: unchanged by any increasing function of the map that leaves 0 at 0. The mean over random positive maps
    is the share of the image that is mask.
    Errors: `StructureError` for shapes that do not fit, a mask that is not bool, or fewer than k pixels.
    Differs from: Quantus also counts pixels without evidence, in an arbitrary order; its `concept_influence` is the
    value divided by that of chance, `mask.mean()`.

    References:
        Theiner, Müller-Budack, Ewerth, Interpretable semantic photo geolocation, WACV 2022.
    """

    def measure(attribution: ArrayLike, mask: ArrayLike) -> jax.Array:
        heat, inside = _positive("metrics.top_k_intersection", attribution, mask)
        if k > heat.size:
            raise StructureError(
                explain_error(
                    "metrics.top_k_intersection: the map has fewer than k pixels.",
                    got=f"k={k}, map of {heat.size} pixels",
                )
            )
        return _where_placed(heat, inside, jnp.sum(_strongest(heat, k), where=inside) / k)

    return measure


def relevance_rank_accuracy() -> Measure:
    r"""Relevance rank accuracy: the share $|S_K \cap M| / K$ of the K strongest pixels that is in the mask M, where K =
    |M|.

    Returns:
        `measure(attribution, mask)`: (height, width[, channels]) and (height, width), bool → a number in [0, 1]; 1 if
        every pixel of the mask has positive evidence, and more than all others.

    Guarantees, errors and differences are those of `top_k_intersection` with k = |M|. With I =
    `intersection_over_union()` of a map that is positive on at least K pixels it is 2I/(1 + I), so both rank maps
    alike.

    References:
        Arras, Osman, Samek, CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural network
        explanations, Information Fusion 81, 2022.
    """

    def measure(attribution: ArrayLike, mask: ArrayLike) -> jax.Array:
        heat, inside = _positive("metrics.relevance_rank_accuracy", attribution, mask)
        n = jnp.sum(inside)
        return _where_placed(
            heat, inside, jnp.sum(_strongest(heat, n), where=inside) / jnp.maximum(n, 1).astype(heat.dtype)
        )

    return measure


def attribution_auc() -> Measure:
    r"""Area under the ROC curve of the map against the mask:
    $P\left(R^+(p) > R^+(q)\right) + \tfrac12 P\left(R^+(p) = R^+(q)\right)$ for a random pixel p inside and q outside.

    The ROC curve plots the share of the mask above a threshold against the share of the rest above it; ties are exact.

    Returns:
        `measure(attribution, mask)`: (height, width[, channels]) and (height, width), bool → a number in [0, 1]; a
        constant map has 0.5, the level of chance.

    Guarantees: unchanged by any increasing function of the map that leaves 0 at 0. The values of a mask and of its
    complement sum to 1.
    Cost: a sort of the pixels.
    Errors: `StructureError` for shapes that do not fit, a mask that is not bool, or one that covers the whole image
    (NaN if it is traced).
    Differs from: scikit-learn, and therefore Quantus, also ranks negative values, which here are no evidence and tie
    with 0. For their number shift the map: `attribution - attribution.min() + 1`.

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27, 2006.
    """

    def measure(attribution: ArrayLike, mask: ArrayLike) -> jax.Array:
        heat, inside = _positive("metrics.attribution_auc", attribution, mask)
        _require_some(
            "metrics.attribution_auc", ~inside, "the mask is the whole image, so that nothing outside can be compared."
        )
        outside = jnp.sort(jnp.where(inside, jnp.inf, heat), axis=None)  # pixels inside come last
        below, up_to = (jnp.searchsorted(outside, heat, side=side) for side in ("left", "right"))
        n = jnp.sum(~inside, dtype=heat.dtype)
        outranked = (below + up_to).astype(heat.dtype) / (2 * jnp.maximum(n, 1))
        value = jnp.sum(outranked, where=inside) / jnp.maximum(jnp.sum(inside, dtype=heat.dtype), 1)
        return _where_placed(heat, inside, jnp.where(n > 0, value, jnp.nan))

    return measure


def _strongest(heat: jax.Array, n: jax.Array | int) -> jax.Array:
    """1 for the n largest positive values, 0 for others; values that tie for the last places get equal shares."""
    last = jnp.sort(heat, axis=None, descending=True)[jnp.maximum(n - 1, 0)]
    above, ties = heat > last, heat == last
    share = (n - jnp.sum(above)) / jnp.sum(ties)
    return jnp.where(heat > 0, jnp.where(above, 1, jnp.where(ties, share, 0)), 0).astype(heat.dtype)


def _positive(method: str, attribution: ArrayLike, mask: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The positive evidence as (height, width), and the mask."""
    if mask is None:
        raise StructureError(explain_error(f"{method}: needs a mask.", fix="measure(attribution, mask)"))
    heat, inside = jnp.asarray(attribution), jnp.asarray(mask)
    heat = jnp.sum(heat, axis=-1) if heat.ndim == 3 else heat
    if heat.ndim != 2 or heat.shape != inside.shape or inside.dtype != bool:
        raise StructureError(
            explain_error(
                f"{method}: needs a map and a mask of one image.",
                got=f"map {list(jnp.shape(attribution))}, mask {list(inside.shape)} of {inside.dtype}",
                need="(height, width) or (height, width, channels), and (height, width) of bool",
                fix="a batch of them: jax.vmap(measure)(attributions, masks)",
            )
        )
    _require_some(method, inside, "the mask is empty, so that there is nothing to find.")
    heat = heat if jnp.issubdtype(heat.dtype, jnp.floating) else heat.astype(jnp.float32)
    return jnp.maximum(heat.astype(wide_dtype(heat)), 0), inside


def _require_some(method: str, pixels: jax.Array, words: str) -> None:
    is_some = jnp.any(pixels)  # traced under jit, even if `pixels` is a constant
    if not isinstance(is_some, jax.core.Tracer) and not is_some:
        raise StructureError(explain_error(f"{method}: {words}"))


def _where_placed(heat: jax.Array, inside: jax.Array, value: jax.Array) -> jax.Array:
    is_placed = jnp.isfinite(heat).all() & jnp.any(heat > 0) & jnp.any(inside)
    return jnp.where(is_placed, value.astype(heat.dtype), jnp.nan)
