"""Flipping: does the score fall when the features that the attribution names are removed, one after the other?

Notation: R attribution, x input, G groups of features, R_G the sum of R over G, $x_{\\setminus S}$ is x with the features in S replaced (`baseline`). The whole
curve is one compiled program.

What a removed feature is replaced by decides as much as the attribution does: compare with a random map and with `greedy`, the controls, under
the same `baseline`, before comparing methods.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._accumulate import evaluate
from jaxplain._checks import chunk_of, positive_int, require_callable
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._explainer import Call
from jaxplain._groups import groups_of, patches
from jaxplain._leaves import cast_like
from jaxplain._types import Leaves
from jaxplain.metrics._measure import Compute, CurveMeasure, relevance_of
from jaxplain.metrics.removal import draws, filler, impute


class Curve(NamedTuple):
    """The score while features are removed (or inserted).

    Attributes:
        share: of the groups that are removed (inserted), from 0; for `road` those that were asked for.
        score: with that share removed.
    """

    share: jax.Array
    score: jax.Array

    @property
    def area(self) -> jax.Array:
        """The mean height of the curve: its area by trapezoids, over the share reached; units of the score."""
        return jnp.trapezoid(self.score, self.share, axis=-1) / (self.share[..., -1] - self.share[..., 0])


def pixel_flipping(
    score: Callable[..., Any],
    *,
    order: str = "most",
    groups: Any = None,
    n_groups: int | None = None,
    baseline: Any = 0.0,
    n_steps: int | None = None,
    until: float = 1.0,
    recompute: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Pixel flipping (deletion, patch flipping): the mean height of the curve $k \mapsto f(x_{\setminus G_1 \cup \dots \cup G_k})$, $R_{G_1} \ge R_{G_2} \ge \dots$

    Features are removed in the order of their relevance, and the score is recorded. **Low is good** (with `order="least"` high is): the features
    named first are those that the score rests on.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        order: "most" relevant first, or "least". Of equal groups the one with the smaller label goes first, in C order.
        groups, n_groups: what is removed together, as in `ablation`: `None` single features, `jx.patches(1, 1)` pixels with all their channels,
            `jx.patches(4, 4)` patches, a segmentation. Labels that no feature has do not count, so that `n_groups` may be an upper bound for traced segmentations.
        baseline: what they are replaced by: a number, a pytree, a function of x (`metrics.removal.blur`, `metrics.removal.channel_mean`), `jx.references(...)` (one drawn for each
            evaluation), `metrics.removal.uniform(...)`, `metrics.removal.impute(...)`; those that draw need a key.
        n_steps: removals, of equally many groups each, to rounding; `None` is one group each. Cost is n_steps + 1 evaluations.
        until: the share of the groups that is removed in the end.
        recompute: an explainer; then each removal takes the groups that `recompute` finds most (least) relevant *in what is left* of x, and the attribution
            decides the first removal alone. It costs one explanation a step, one after the other.
        chunk_size: evaluations at once, as in `occlusion`.
        argnums, allow_random: as in `gradient`.
        key: random key shared by all examples, if `baseline` draws; else `measure(attribution, x, *args, key=key)`.

    Returns:
        `measure(attribution, x, *args)` → a number in units of the score; `measure.curve(attribution, x, *args)` → `Curve(share, score)`. A map over the places
        of an image with channels (a class activation map) counts for each channel in equal parts.

    Guarantees: depends on the attribution by the order of its groups alone. Starts at f(x), and ends, at `until=1`, at the score with every group replaced: differences of methods are
    differences of the way between. NaN if the attribution is not finite.
    Cost: n_steps + 1 evaluations of the score (with `recompute` also n_steps explanations, one after the other).
    Errors: an attribution, groups or a baseline that do not fit x; a missing key.
    Differs from: Quantus leaves out f(x), sums with unit steps (its numbers grow with the number of steps), breaks ties arbitrarily, and recomputes
    "mean" on the image that is already mutilated.

    References:
        Bach et al., On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation, PLOS ONE 10, 2015.
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


def insertion(
    score: Callable[..., Any],
    *,
    groups: Any = None,
    n_groups: int | None = None,
    baseline: Any = 0.0,
    n_steps: int | None = None,
    until: float = 1.0,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Insertion: the mean height of the curve $k \mapsto f(x_{\setminus \overline{G_1 \cup \dots \cup G_k}})$, $R_{G_1} \ge R_{G_2} \ge \dots$ **High is good.**

    From the baseline, features are put back, the most relevant first. The paper's baseline is a blurred image, `baseline=metrics.removal.blur(5.0)`; its
    counterpart *deletion* is `pixel_flipping`.

    Arguments, returns and costs are those of `pixel_flipping`. The curve starts at the score of the baseline and ends, at `until=1`, at f(x).

    References:
        Petsiuk, Das, Saenko, RISE: randomized input sampling for explanation of black-box models, BMVC 2018.
    """
    path = _path("insertion", "most", groups, n_groups, baseline, n_steps, until, None, chunk_size, insert=True)
    return _curve_measure("insertion", score, path, lambda curve: curve.area, baseline, argnums, allow_random, key)


def region_perturbation(
    score: Callable[..., Any],
    *,
    order: str = "most",
    groups: Any,
    n_groups: int | None = None,
    baseline: Any,
    n_steps: int | None = None,
    until: float = 1.0,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Region perturbation, as area over the curve: $\text{AOPC} = \frac{1}{L+1} \sum_{k=0}^L \left[f(x) - f(x_{\setminus G_1 \cup \dots \cup G_k})\right]$. **High is good.**

    The paper's regions are 9 × 9 pixels, `groups=jx.patches(9, 9)`, of which 100 of n are replaced, `until=100 / n`, by uniform noise, `baseline=metrics.removal.uniform(0, 1)` (drawn
    anew at every step here).

    Arguments, returns and costs are those of `pixel_flipping`, whose curve it reads; L is the number of steps.
    Guarantees: f(x) minus the mean of the curve's points.
    Differs from: Quantus returns the differences and no AOPC.

    References:
        Samek et al., Evaluating the visualization of what a deep neural network has learned, IEEE TNNLS 28, 2017.
    """
    path = _path("region_perturbation", order, groups, n_groups, baseline, n_steps, until, None, chunk_size)

    def over(curve: Curve) -> jax.Array:
        moved = (
            jnp.diff(curve.share, prepend=-1, axis=-1) > 0
        )  # where traced labels are fewer than `n_groups`, the last points repeat
        return jnp.mean(curve.score[..., :1] - curve.score, axis=-1, where=moved)

    return _curve_measure("region_perturbation", score, path, over, baseline, argnums, allow_random, key)


def selectivity(
    score: Callable[..., Any],
    *,
    window: int | tuple[int, ...] = (4, 4),
    n_steps: int = 19,
    baseline: Any = 0.0,
    recompute: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Selectivity: pixel flipping by windows that may lie anywhere: each step removes the window W of largest $\sum_{i \in W} R_i$ that overlaps nothing removed.

    **Low is good.** It is the protocol of the tutorial on deep Taylor decomposition, with `recompute=explain`. For windows on a fixed grid, for other orders and for
    single pixels see `pixel_flipping`, which evaluates all steps at once.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example.
        window: its lengths over the leading axes of x, one array; axes that it does not name are spanned whole.
        n_steps: windows removed. When no window is left that overlaps nothing removed, nothing more is.
        baseline: as in `pixel_flipping`.
        recompute: an explainer; then the windows are chosen by its attribution of what is left of x, step by step. `None`: by the one attribution given.
        argnums, allow_random, key: as in `pixel_flipping`.

    Returns:
        `measure(attribution, x, *args)` → the mean height of the curve, in units of the score; `measure.curve(…)` → `Curve(share, score)`, the share being that of
        the steps.

    Guarantees: of windows with equal sums the first in C order is taken. NaN if an attribution is not finite.
    Cost: n_steps + 1 evaluations of the score, one after the other; with `recompute` also n_steps explanations.
    Errors: an x that is not one array; a window that is larger than it.

    References:
        Montavon, Samek, Müller, Methods for interpreting and understanding deep neural networks, Digital Signal Processing 73, 2018.
    """
    name = "selectivity"
    positive_int(f"metrics.{name}", "n_steps", n_steps)
    lengths = window if isinstance(window, tuple) else (window,)
    for length in lengths:
        positive_int(f"metrics.{name}", "window", length)

    def compute(call: Call, relevance: Leaves, key: Any) -> Curve:
        if len(call.x) != 1 or len(lengths) > call.x[0].ndim or any(n > s for n, s in zip(lengths, call.x[0].shape)):  # noqa: B905
            raise StructureError(
                explain_error(
                    f"metrics.{name}: a window slides over one array, and fits into it.",
                    got=f"window={window}, x of shapes {[leaf.shape for leaf in call.x]}",
                    fix="pytrees and groups of any form: jx.metrics.pixel_flipping(score, groups=…)",
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
                index = lax.broadcasted_iota(jnp.int32, x.shape, axis) - start
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


def irof(
    score: Callable[..., Any],
    *,
    groups: Any,
    n_groups: int | None = None,
    baseline: Any,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""IROF, iterative removal of features: the area over the curve $k \mapsto f(x_{\setminus G_1 \cup \dots \cup G_k}) / f(x)$. **High is good.**

    Segments are removed in the order of their *mean* relevance. f is a probability in the paper: `jx.logit(model, of="prob")`. The paper replaces segments by the mean of the data
    set.

    Arguments:
        groups: the segmentation, by whatever algorithm (the paper's is SLIC): integer labels (H, W, 1) for an image (H, W, C).
        the others: as in `pixel_flipping`.

    Returns:
        `measure(attribution, x, *args)` → $1 - \frac{1}{L} \int_0^L f(x_{\setminus k})/f(x)\, dk$, 0 if the score never changes; `measure.curve(…)` → `Curve(share, score)`.

    Guarantees: NaN where f(x) ≤ 0: a ratio to it says nothing.
    Cost: 1 + (number of segments) evaluations of the score.
    Differs from: Quantus' curve begins after the first removal and is not divided by the number of segments, so that a map without any effect scores 1 there.

    References:
        Rieger, Hansen, IROF: a low resource evaluation metric for explanation methods, ICLR workshop 2020.
    """
    path = _path("irof", "most", groups, n_groups, baseline, None, 1.0, None, chunk_size, mean=True)

    def over(curve: Curve) -> jax.Array:
        first = curve.score[..., 0]
        return jnp.where(first > 0, 1 - curve.area / jnp.where(first > 0, first, 1), jnp.nan)

    return _curve_measure("irof", score, path, over, baseline, argnums, allow_random, key)


def road(
    score: Callable[..., Any],
    *,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    order: str = "most",
    baseline: Any = None,
    groups: Any = None,
    n_groups: int | None = None,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""ROAD, remove and debias: the mean score after the most relevant pixels have been imputed from their neighbors, over several shares of pixels. **Low is good.**

    Arguments:
        shares: of the pixels that are removed, each from the whole x.
        order: "most" relevant first, or "least" (then high is good).
        baseline: `None` is `metrics.removal.impute()`, the paper's noisy linear imputation.
        groups: `None` is `jx.patches(1, 1)`: pixels with all their channels.
        the others: as in `pixel_flipping`.

    Returns:
        `measure(attribution, x, *args, key=key)` → the mean over the shares, in units of the score; `measure.curve(…)` → `Curve(share, score)` with a point for each share.
        The paper's *accuracy* is the mean over examples of a score that is 1 if the class is still predicted:
        `lambda x, y: (jnp.argmax(model(x[None])[0]) == y) * 1.0`.

    Guarantees: depends on the attribution by the order of its groups alone; NaN if it is not finite. Each share removes at least one group.
    Cost: one evaluation of the score, and of the imputation, for each share.
    Errors: those of `pixel_flipping`; shares outside (0, 1].
    Differs from: the number of pixels removed is rounded; the authors' code and Quantus cut it off.

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
    score: Callable[..., Any],
    compute: Compute,
    reduce: Callable[[Curve], jax.Array],
    baseline: Any,
    argnums: int | Sequence[int],
    allow_random: bool,
    key: jax.Array | None,
    recompute: Callable[..., Any] | None = None,
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
        stochastic=draws(baseline) or getattr(recompute, "needs_key", False),
        key=key,
    )


def _path(
    name: str,
    order: str,
    groups: Any,
    n_groups: int | None,
    baseline: Any,
    n_steps: int | None,
    until: float,
    recompute: Callable[..., Any] | None,
    chunk_size: int | None,
    *,
    insert: bool = False,
    mean: bool = False,
    shares: np.ndarray | None = None,
) -> Compute:
    """The curve of a metric: which groups are removed at each of its points, and the score there.

    `mean`: groups are ranked by the mean of their relevance; `insert`: all but the first groups are removed; `shares`: where the points of the
    curve lie, in place of evenly from 0 to `until`.
    """
    method = f"metrics.{name}"
    if order not in ("most", "least"):
        raise SettingError(
            explain_error(f"{method}: `order` says which groups go first.", got=repr(order), need='"most" or "least"')
        )
    if not isinstance(until, int | float) or not 0 < until <= 1:
        raise SettingError(explain_error(f"{method}: `until` is a share of the groups, in (0, 1].", got=repr(until)))
    if n_steps is not None:
        positive_int(method, "n_steps", n_steps)
    chunk = chunk_of(method, chunk_size)
    sign = -1 if order == "most" else 1

    def compute(call: Call, relevance: Leaves, key: Any) -> Curve:
        labeled = groups_of(call.arguments, groups, n_groups)
        n = labeled.n
        points = np.linspace(0, until, (n_steps or max(round(until * n), 1)) + 1) if shares is None else shares
        n_present = jnp.sum(labeled.is_present)  # n, unless labels are traced
        if n_steps is None and shares is None:
            counts = jnp.minimum(np.round(points * n), jnp.round(until * n_present))
        else:
            counts = jnp.round(points * n_present)
        counts = jnp.where(points > 0, jnp.maximum(counts, 1), 0).astype(jnp.int32)  # a removal removes something
        fill = filler(call.arguments, baseline)
        removal_key, explain_key = _two_keys(key)
        share = (counts / n_present).astype(jnp.result_type(*call.x))

        def turns(relevance: Leaves) -> jax.Array:
            """For each group the number of groups that go before it."""
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
            is_finite = jnp.array([jnp.isfinite(leaf).all() for leaf in relevance]).all()
            turn = jnp.argsort(jnp.argsort(turns(relevance) + n * is_removed))  # what is removed goes last
            is_removed = is_removed | (turn < jnp.diff(counts)[k])
            point = fill(labeled.members(is_removed), _fold_in(removal_key, k + 1))
            relevance = _explain(recompute, call, point, _fold_in(explain_key, k))
            return (is_removed, relevance), jnp.where(is_finite, call.value(point), jnp.nan)

        nothing = _compat.varying_like(jnp.zeros(n, bool), relevance[0])
        scores = lax.scan(jax.checkpoint(step), (nothing, relevance), jnp.arange(len(counts) - 1))[1]
        scores = jnp.concatenate([call.value(call.x)[None], scores])
        return Curve(share, labeled.where_valid(scores))

    return compute


def _explain(recompute: Callable[..., Any], call: Call, point: Leaves, key: Any) -> Leaves:
    """The relevance of another point than x, by an explainer."""
    keyword = {"key": key} if getattr(recompute, "needs_key", False) else {}
    args = call.arguments.fill(cast_like(point, call.arguments.leaves))
    return relevance_of(call.arguments, recompute(*args, **keyword))


def _two_keys(key: Any) -> tuple[Any, Any]:
    return (None, None) if key is None else tuple(jax.random.split(key))


def _fold_in(key: Any, k: Any) -> Any:
    return None if key is None else jax.random.fold_in(key, k)
