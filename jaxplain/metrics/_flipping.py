r"""Flipping: does the score fall when the most relevant features are removed, one after the other?

Notation: R attribution, x input, G groups of features, R_G the sum of R over G, $x_{\setminus S}$ is x with the
features in S replaced (`baseline`). The whole curve is one compiled program.

The replacement of removed features matters as much as the attribution. Before comparing methods, compare each with the
controls, a random map and `greedy`, under the same `baseline`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._accumulate import evaluate
from jaxplain._checks import checked, chunk_of, positive_int, require_callable
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._explainer import Call
from jaxplain._groups import groups_of, patches
from jaxplain._leaves import cast_like, common_dtype
from jaxplain._types import ArgNums, Explain, GroupLabels, Leaves, Score, traits
from jaxplain.metrics._protocol import Compute, CurveMeasure, all_finite, relevance_of
from jaxplain.metrics.removal import Replacement, draws, filler, impute


class Curve(NamedTuple):
    """The score while features are removed (or inserted).

    Attributes:
        share: Share of the groups that are removed (inserted), from 0; for `road` the requested shares.
        score: Score with that share removed.
    """

    share: jax.Array
    score: jax.Array

    @property
    def area(self) -> jax.Array:
        """The mean height of the curve, i.e. its area by trapezoids divided by its width; units of the score."""
        return jnp.trapezoid(self.score, self.share, axis=-1) / (self.share[..., -1] - self.share[..., 0])


@checked()
def pixel_flipping(
    score: Score,
    *,
    order: str = "most",
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    n_steps: int | None = None,
    until: float = 1.0,
    recompute: Explain | None = None,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Pixel flipping (deletion, patch flipping): the mean height of the curve
    $k \mapsto f(x_{\setminus G_1 \cup \dots \cup G_k})$, $R_{G_1} \ge R_{G_2} \ge \dots$

    Features are removed in the order of their relevance, and the score is recorded. **Low is good**, because the score
    then depends on the features named first. With `order="least"` high is good.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        order: "most" relevant first, or "least". Ties go to the smaller label, in C order.
        groups, n_groups: Features that are removed together, as in `ablation`: `None` for single features,
            `jx.patches(1, 1)` for pixels with all their channels, `jx.patches(4, 4)`, or a segmentation. Labels without
            features do not count, so that `n_groups` may be an upper bound for traced segmentations.
        baseline: Replacement of removed features: a number, a pytree, a function of x (`metrics.removal.blur`,
            `metrics.removal.channel_mean`), `jx.references(...)` (one drawn for each evaluation),
            `metrics.removal.uniform(...)` or `metrics.removal.impute(...)`. The last three draw and need a key.
        n_steps: Number of removals, each of equally many groups up to rounding; `None` removes one group at a time.
        until: Share of the groups that is removed in the end.
        recompute: An explainer. If given, each removal takes the groups that `recompute` finds most (least) relevant
            *in the remaining x*, and the attribution only decides the first removal.
        chunk_size: Evaluations at once, as in `occlusion`.
        argnums, allow_random: As in `gradient`.
        key: Random key shared by all examples, if `baseline` draws; otherwise
            `measure(attribution, x, *args, key=key)`.

    Returns:
        `measure(attribution, x, *args)` → a number in units of the score; `measure.curve(attribution, x, *args)` →
        `Curve(share, score)`. A map over the positions of an image with channels (a class activation map) counts for
        each channel in equal parts.

    Guarantees: depends on the attribution only by the order of its groups. The curve starts at f(x) and ends, with
    `until=1`, at the score with every group replaced, so that methods only differ in between. NaN if the attribution is
    not finite.
    Cost: n_steps + 1 evaluations of the score (with `recompute` also n_steps explanations, one after the other).
    Errors: an attribution, groups or a baseline that do not fit x; a missing key.
    Differs from: Quantus omits f(x), sums with unit steps (its numbers grow with the number of steps), breaks ties
    arbitrarily, and recomputes "mean" on the partly removed image.

    References:
        Bach et al., On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation,
        PLOS ONE 10, 2015.
        Samek et al., Evaluating the visualization of what a deep neural network has learned, IEEE TNNLS 28, 2017.
    """
    return _curve_measure(
        "pixel_flipping",
        score,
        _path("pixel_flipping", order, groups, n_groups, baseline, n_steps, until, recompute, chunk_size),
        lambda curve: curve.area,
        baseline,
        argnums,
        allow_random,
        key,
        recompute,
    )


@checked()
def insertion(
    score: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    n_steps: int | None = None,
    until: float = 1.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Insertion: the mean height of the curve $k \mapsto f(x_{\setminus \overline{G_1 \cup \dots \cup G_k}})$,
    $R_{G_1} \ge R_{G_2} \ge \dots$ **High is good.**

    Features are put back into the baseline, the most relevant first. The paper's baseline is a blurred image,
    `baseline=metrics.removal.blur(5.0)`. Its counterpart *deletion* is `pixel_flipping`.

    Arguments, returns and costs are those of `pixel_flipping`. The curve starts at the score of the baseline and ends,
    with `until=1`, at f(x).

    References:
        Petsiuk, Das, Saenko, RISE: randomized input sampling for explanation of black-box models, BMVC 2018.
    """
    path = _path("insertion", "most", groups, n_groups, baseline, n_steps, until, None, chunk_size, insert=True)
    return _curve_measure("insertion", score, path, lambda curve: curve.area, baseline, argnums, allow_random, key)


@checked()
def region_perturbation(
    score: Score,
    *,
    order: str = "most",
    groups: GroupLabels,
    n_groups: int | None = None,
    baseline: Replacement,
    n_steps: int | None = None,
    until: float = 1.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Region perturbation, as area over the curve:
    $\text{AOPC} = \frac{1}{L+1} \sum_{k=0}^L \left[f(x) - f(x_{\setminus G_1 \cup \dots \cup G_k})\right]$. **High is
    good.**

    The paper's regions are 9 × 9 pixels, `groups=jx.patches(9, 9)`. It replaces 100 of n of them, `until=100 / n`, by
    uniform noise, `baseline=metrics.removal.uniform(0, 1)` (drawn independently at every step here).

    Arguments, returns and costs are those of `pixel_flipping`, whose curve it reads; L is the number of steps.
    Guarantees: f(x) minus the mean of the curve's points.
    Differs from: Quantus returns the differences, and no AOPC.

    References:
        Samek et al., Evaluating the visualization of what a deep neural network has learned, IEEE TNNLS 28, 2017.
    """
    path = _path("region_perturbation", order, groups, n_groups, baseline, n_steps, until, None, chunk_size)

    def over(curve: Curve) -> jax.Array:
        # If there are fewer traced labels than `n_groups`, the last points repeat.
        is_new = jnp.diff(curve.share, prepend=-1, axis=-1) > 0
        return jnp.mean(curve.score[..., :1] - curve.score, axis=-1, where=is_new)

    return _curve_measure("region_perturbation", score, path, over, baseline, argnums, allow_random, key)


@checked()
def selectivity(
    score: Score,
    *,
    window: int | tuple[int, ...] = (4, 4),
    n_steps: int = 19,
    baseline: Replacement = 0.0,
    recompute: Explain | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Selectivity: pixel flipping by windows at any position. Each step removes the window W of largest
    $\sum_{i \in W} R_i$ that overlaps no removed window. **Low is good.**

    With `recompute=explain` it is the protocol of the tutorial on deep Taylor decomposition. For windows on a fixed
    grid, other orders and single pixels see `pixel_flipping`, which evaluates all steps at once.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example.
        window: Lengths of the window along the leading axes of x, which is one array. It spans all other axes.
        n_steps: Number of windows removed. Nothing more is removed if no window without overlap is left.
        baseline: As in `pixel_flipping`.
        recompute: An explainer. If given, each step chooses its window by the attribution of the remaining x; otherwise
            all steps use the given attribution.
        argnums, allow_random, key: As in `pixel_flipping`.

    Returns:
        `measure(attribution, x, *args)` → the mean height of the curve, in units of the score; `measure.curve(…)` →
        `Curve(share, score)` with the share of the steps.

    Guarantees: of windows with equal sums the first in C order is taken. NaN if an attribution is not finite.
    Cost: n_steps + 1 evaluations of the score, one after the other; with `recompute` also n_steps explanations.
    Errors: an x that is not one array; a window that is larger than it.

    References:
        Montavon, Samek, Müller, Methods for interpreting and understanding deep neural networks, Digital Signal
        Processing 73, 2018.
    """
    name = "selectivity"
    lengths = window if isinstance(window, tuple) else (window,)
    for length in lengths:
        positive_int(f"metrics.{name}", "window", length)

    def compute(call: Call, relevance: Leaves, key: Any) -> Curve:
        if len(call.x) != 1 or len(lengths) > call.x[0].ndim or any(map(operator.gt, lengths, call.x[0].shape)):
            raise StructureError(
                explain_error(
                    f"metrics.{name}: a window slides over one array and fits into it.",
                    got=f"window={window}, x of shapes {[leaf.shape for leaf in call.x]}",
                    fix="for pytrees and groups of any form: jx.metrics.pixel_flipping(score, groups=…)",
                )
            )
        (x,) = call.x
        fill = filler(call.arguments, baseline)
        full = (*lengths, *x.shape[len(lengths) :])
        ones = (1,) * x.ndim
        removal_key, explain_key = _two_keys(key)

        def step(state: tuple, k: jax.Array) -> tuple[tuple, jax.Array]:
            removed, relevance = state
            sums = lax.reduce_window(relevance, 0.0, lax.add, full, ones, "VALID")
            touches = lax.reduce_window(removed, False, lax.bitwise_or, full, ones, "VALID")
            place = jnp.unravel_index(jnp.argmax(jnp.where(touches, -jnp.inf, sums)), sums.shape)
            chosen = jnp.ones(x.shape, bool)
            for axis, (start, length) in enumerate(zip(place, full, strict=True)):
                index = lax.broadcasted_iota(jnp.int32, x.shape, axis) - start.astype(jnp.int32)
                chosen &= (index >= 0) & (index < length)
            removed = removed | (chosen & ~jnp.all(touches))
            point = fill((removed,), _fold_in(removal_key, k))
            is_finite = jnp.isfinite(relevance).all()
            if recompute is not None:
                (relevance,) = _explain(recompute, call, point, _fold_in(explain_key, k))
            return (removed, relevance), jnp.where(is_finite, call.value(point), jnp.nan)

        state = (_compat.varying_like(jnp.zeros(x.shape, bool), relevance[0]), relevance[0])
        scores = lax.scan(jax.checkpoint(step), state, jnp.arange(1, n_steps + 1))[1]
        return Curve(jnp.linspace(0, 1, n_steps + 1), jnp.concatenate([call.value(call.x)[None], scores]))

    return _curve_measure(
        name, score, compute, lambda curve: curve.area, baseline, argnums, allow_random, key, recompute
    )


@checked()
def irof(
    score: Score,
    *,
    groups: GroupLabels,
    n_groups: int | None = None,
    baseline: Replacement,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""IROF, iterative removal of features: the area over the curve
    $k \mapsto f(x_{\setminus G_1 \cup \dots \cup G_k}) / f(x)$. **High is good.**

    Segments are removed in the order of their *mean* relevance. In the paper, f is a probability
    (`jx.logit(model, of="prob")`), and segments are replaced by the mean of the data set.

    Arguments:
        groups: The segmentation (the paper's is SLIC): integer labels (H, W, 1) for an image (H, W, C).
        n_groups, baseline, chunk_size, argnums, allow_random, key: As in `pixel_flipping`.

    Returns:
        `measure(attribution, x, *args)` → $1 - \frac{1}{L} \int_0^L f(x_{\setminus k})/f(x)\, dk$, which is 0 if the
        score never changes; `measure.curve(…)` → `Curve(share, score)`.

    Guarantees: NaN if f(x) ≤ 0, because the ratio is then meaningless.
    Cost: 1 + (number of segments) evaluations of the score.
    Differs from: Quantus' curve begins after the first removal and is not divided by the number of segments, so that a
    map without any effect scores 1 there.

    References:
        Rieger, Hansen, IROF: a low resource evaluation metric for explanation methods, ICLR workshop 2020.
    """
    path = _path("irof", "most", groups, n_groups, baseline, None, 1.0, None, chunk_size, mean=True)

    def over(curve: Curve) -> jax.Array:
        first = curve.score[..., 0]
        return jnp.where(first > 0, 1 - curve.area / jnp.where(first > 0, first, 1), jnp.nan)

    return _curve_measure("irof", score, path, over, baseline, argnums, allow_random, key)


@checked()
def road(
    score: Score,
    *,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    order: str = "most",
    baseline: Replacement | None = None,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""ROAD, remove and debias: the mean score over several shares of pixels, the most relevant of which are imputed
    from their neighbors. **Low is good.**

    Arguments:
        shares: Shares of the pixels to remove, each from the whole x.
        order: "most" relevant first, or "least" (then high is good).
        baseline: `None` is `metrics.removal.impute()`, the paper's noisy linear imputation.
        groups: `None` is `jx.patches(1, 1)`, pixels with all their channels.
        n_groups, chunk_size, argnums, allow_random, key: As in `pixel_flipping`.

    Returns:
        `measure(attribution, x, *args, key=key)` → the mean over the shares, in units of the score; `measure.curve(…)`
        → `Curve(share, score)` with a point for each share. The paper's *accuracy* is the mean over examples with a
        score that is 1 if the class is still predicted: `lambda x, y: (jnp.argmax(model(x[None])[0]) == y) * 1.0`.

    Guarantees: depends on the attribution only by the order of its groups; NaN if it is not finite. Each share removes
    at least one group.
    Cost: one evaluation of the score, and one imputation, for each share.
    Errors: those of `pixel_flipping`; shares outside (0, 1].
    Differs from: the number of removed pixels is rounded; the authors' code and Quantus round it down.

    References:
        Rong et al., A consistent and efficient evaluation strategy for attribution methods, ICML 2022.
    """
    given = np.asarray(shares, float)
    if given.ndim != 1 or not given.size or not ((given > 0) & (given <= 1)).all():
        raise SettingError(explain_error("metrics.road: `shares` must lie in (0, 1].", got=repr(shares)))
    baseline = impute() if baseline is None else baseline
    groups = patches(1, 1) if groups is None else groups
    path = _path("road", order, groups, n_groups, baseline, None, 1.0, None, chunk_size, shares=given)
    return _curve_measure(
        "road", score, path, lambda curve: jnp.mean(curve.score, axis=-1), baseline, argnums, allow_random, key
    )


def _curve_measure(
    name: str,
    score: Score,
    compute: Compute,
    reduce: Callable[[Curve], jax.Array],
    baseline: Replacement,
    argnums: ArgNums,
    allow_random: bool,
    key: jax.Array | None,
    recompute: Explain | None = None,
) -> CurveMeasure:
    if recompute is not None:
        require_callable(f"metrics.{name}", recompute)
    return CurveMeasure(
        name,
        score,
        compute,
        reduce,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=draws(baseline) or (recompute is not None and traits(recompute).needs_key),
        key=key,
    )


def _path(
    name: str,
    order: str,
    groups: GroupLabels,
    n_groups: int | None,
    baseline: Replacement,
    n_steps: int | None,
    until: float,
    recompute: Explain | None,
    chunk_size: int | None,
    *,
    insert: bool = False,
    mean: bool = False,
    shares: np.ndarray | None = None,
) -> Compute:
    """The curve of a metric: the groups removed at each of its points, and the score there.

    Arguments:
        insert: Whether all groups are removed but the first ones.
        mean: Whether groups are ranked by the mean of their relevance.
        shares: Positions of the points of the curve; `None` spaces them evenly from 0 to `until`.
    """
    method = f"metrics.{name}"
    if not isinstance(order, str) or order not in ("most", "least"):
        raise SettingError(
            explain_error(f"{method}: `order` says which groups go first.", got=repr(order), need='"most" or "least"')
        )
    if not isinstance(until, int | float) or not 0 < until <= 1:
        raise SettingError(explain_error(f"{method}: `until` is a share of the groups, in (0, 1].", got=repr(until)))
    chunk = chunk_of(method, chunk_size)
    sign = -1 if order == "most" else 1

    def compute(call: Call, relevance: Leaves, key: Any) -> Curve:
        labeled = groups_of(call.arguments, groups, n_groups)
        n = labeled.n
        points = np.linspace(0, until, (n_steps or max(round(until * n), 1)) + 1) if shares is None else shares
        n_present = jnp.sum(labeled.is_present, dtype=float)  # n, unless labels are traced
        if n_steps is None and shares is None:
            counts = jnp.minimum(jnp.asarray(np.round(points * n), float), jnp.round(until * n_present))
        else:
            counts = jnp.round(jnp.asarray(points, float) * n_present)
        counts = jnp.where(points > 0, jnp.maximum(counts, 1), 0)  # a removal removes something
        fill = filler(call.arguments, baseline)
        removal_key, explain_key = _two_keys(key)
        share = (counts / n_present).astype(common_dtype(*call.x))
        counts = counts.astype(jnp.int32)

        def turns(relevance: Leaves) -> jax.Array:
            """For each group the number of groups before it."""
            ranked = labeled.totals(relevance)
            if mean:
                ranked = ranked / labeled.totals(tuple(map(jnp.ones_like, call.x)))
            return labeled.turns(sign * ranked)

        def score(is_removed: jax.Array, k: jax.Array) -> jax.Array:
            return call.value(fill(labeled.members(is_removed), _fold_in(removal_key, k)))

        if recompute is None:
            turn = turns(relevance)

            def at(k: jax.Array) -> jax.Array:
                first = turn < counts[k]
                return score(~first if insert else first, k)

            return Curve(share, labeled.where_valid(evaluate(at, len(counts), chunk)))

        def step(state: tuple, k: jax.Array) -> tuple[tuple, jax.Array]:
            is_removed, relevance = state
            is_finite = all_finite(relevance)
            ranks = turns(relevance) + jnp.where(is_removed, n, 0)  # removed groups go last
            turn = jnp.argsort(jnp.argsort(ranks)).astype(jnp.int32)
            is_removed = is_removed | (turn < jnp.diff(counts)[k])
            point = fill(labeled.members(is_removed), _fold_in(removal_key, k + 1))
            relevance = _explain(recompute, call, point, _fold_in(explain_key, k))
            return (is_removed, relevance), jnp.where(is_finite, call.value(point), jnp.nan)

        nothing = _compat.varying_like(jnp.zeros(n, bool), relevance[0])
        scores = lax.scan(jax.checkpoint(step), (nothing, relevance), jnp.arange(len(counts) - 1))[1]
        scores = jnp.concatenate([call.value(call.x)[None], scores])
        return Curve(share, labeled.where_valid(scores))

    return compute


def _explain(recompute: Explain, call: Call, point: Leaves, key: Any) -> Leaves:
    """The relevance by an explainer at another point than x."""
    keyword = {"key": key} if traits(recompute).needs_key else {}
    args = call.arguments.fill(cast_like(point, call.arguments.leaves))
    return relevance_of(call.arguments, recompute(*args, **keyword))


def _two_keys(key: Any) -> tuple[Any, Any]:
    return (None, None) if key is None else tuple(jax.random.split(key))


def _fold_in(key: Any, k: Any) -> Any:
    return None if key is None else jax.random.fold_in(key, k)
