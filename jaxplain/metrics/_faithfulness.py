r"""Faithfulness: does the relevance of features agree with the change of the score without them?

Notation: R attribution, x input, $R_S = \sum_{i \in S} R_i$, $x_{\setminus S}$ is x with the features in S replaced
(`baseline`), $\Delta_S = f(x) - f(x_{\setminus S})$. Sets S are made of groups of features. `_flipping` removes groups
one after the other instead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._accumulate import evaluate
from jaxplain._checks import checked, chunk_of, count, flag
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call
from jaxplain._groups import Groups, groups_of
from jaxplain._leaves import cast_like, total, upcast
from jaxplain._types import ArgNums, GroupLabels, Leaves, LikeInput, Score
from jaxplain.metrics._protocol import CurveMeasure, Measure
from jaxplain.metrics.removal import Replacement, draws, filler
from jaxplain.metrics.similarity import correlation, rank_correlation


class Correlations(NamedTuple):
    r"""The correlations that sensitivity-n averages.

    Attributes:
        share: Share of the groups in each set.
        correlation: Correlation of $R_S$ and $\Delta_S$ over sets of that size.
    """

    share: jax.Array
    correlation: jax.Array


@checked(n_samples=count(3))
def faithfulness_correlation(
    score: Score,
    *,
    subset_size: int,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    n_samples: int = 100,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Faithfulness correlation: $\operatorname{corr}_S\left(R_S, \Delta_S\right)$ over random sets S of `subset_size`
    groups. **High is good.**

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        subset_size: Number of groups in a set, a Python integer below the number of groups (of which there is only one
            set).
        groups, n_groups, baseline: As in `pixel_flipping`. The paper's baseline is the mean of the data set.
        n_samples: Number of sets drawn.
        chunk_size: Evaluations at once, as in `occlusion`.
        argnums, allow_random: As in `gradient`.
        key: Random key shared by all examples; otherwise `measure(attribution, x, *args, key=key)`.

    Returns:
        `measure(attribution, x, *args, key=key)` → Pearson's coefficient in [−1, 1]; NaN if one side does not vary.

    Guarantees: 1 if the sum of the attribution over a set is the change of the score without it (x ⊙ ∇f of a linear f);
    unchanged by a positive factor on the map. Set k holds the groups that
    `permutation(fold_in(split(key)[0], k), n)` puts first: results do not depend on `chunk_size`.
    Cost: 1 + n_samples evaluations of the score.

    References:
        Bhatt, Weller, Moura, Evaluating and aggregating feature-based model explanations, IJCAI 2020.
    """
    name = "faithfulness_correlation"
    chunk = chunk_of(f"metrics.{name}", chunk_size)

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        _require_fewer(name, "subset_size", subset_size, sets.labeled.n)
        pairs = evaluate(lambda k: sets.random(key, k, subset_size), n_samples, chunk)
        return sets.labeled.where_valid(correlation(*pairs))

    return Measure(name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=True, key=key)


@checked(n_samples=count(3))
def sensitivity_n(
    score: Score,
    *,
    shares: Sequence[float] = (0.01, 0.02, 0.03, 0.05, 0.09, 0.15, 0.25, 0.4, 0.6, 0.8),
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    n_samples: int = 100,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Sensitivity-n: $\operatorname{corr}_{|S| = n}\left(R_S, \Delta_S\right)$ over random sets S of n groups,
    averaged over several n. **High is good.**

    An attribution *satisfies* sensitivity-n if the correlation is 1. Only linear scores have attributions that satisfy
    it for every n.

    Arguments:
        shares: Sizes of the sets as shares of all groups, in (0, 1); the paper's range from one feature to 80 %. Shares
            that round to the same number count once.
        groups, n_groups, baseline, n_samples, chunk_size, argnums, allow_random, key: As in `faithfulness_correlation`.

    Returns:
        `measure(attribution, x, *args, key=key)` → the mean coefficient; `measure.curve(…)` →
        `Correlations(share, correlation)`.

    Guarantees: for each n those of `faithfulness_correlation`.
    Cost: 1 + n_samples · (number of shares) evaluations of the score.
    Differs from: Quantus draws no sets: it removes features cumulatively, in the order of relevance, and correlates
    over examples.

    References:
        Ancona, Ceolini, Öztireli, Gross, Toward better understanding of gradient-based attribution methods for deep
        neural networks, ICLR 2018.
    """
    name = "sensitivity_n"
    chunk = chunk_of(f"metrics.{name}", chunk_size)
    given = np.asarray(shares, float)
    if given.ndim != 1 or not given.size or not ((given > 0) & (given < 1)).all():
        raise SettingError(explain_error(f"metrics.{name}: `shares` must lie in (0, 1).", got=repr(shares)))

    def compute(call: Call, relevance: Leaves, key: Any) -> Correlations:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        n = sets.labeled.n
        if n < 2:
            _require_fewer(name, "shares", 1, n)
        sizes = np.unique(np.clip(np.round(given * n), 1, n - 1))
        n_present = jnp.sum(sets.is_present, dtype=float)  # n, unless labels are traced
        scaled = jnp.clip(jnp.round(jnp.asarray(sizes, float) * (n_present / n)), 1, n_present - 1)

        def pair(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            return sets.random(key, i, scaled[i // n_samples].astype(jnp.int32))

        sums, drops = evaluate(pair, len(sizes) * n_samples, chunk)
        each = jax.vmap(correlation)(sums.reshape(len(sizes), -1), drops.reshape(len(sizes), -1))
        return Correlations((scaled / n_present).astype(sums.dtype), sets.labeled.where_valid(each))

    return CurveMeasure(
        name,
        score,
        compute,
        lambda c: jnp.mean(c.correlation, axis=-1),
        argnums=argnums,
        allow_random=allow_random,
        stochastic=True,
        key=key,
    )


@checked()
def faithfulness_estimate(
    score: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Faithfulness estimate: $\operatorname{corr}_G\left(R_G, \Delta_G\right)$ over the groups, each removed alone.
    **High is good.**

    Arguments, returns and guarantees are those of `faithfulness_correlation`. The score of the paper is a probability.
    Cost: 1 + (number of groups) evaluations of the score, the same as `ablation`. The map of `ablation` has the value 1
    if all groups have the same size (it writes a group's value to each of its features, and $R_G$ is their sum).

    References:
        Alvarez-Melis, Jaakkola, Toward robust interpretability with self-explaining neural networks, NeurIPS 2018.
    """
    name = "faithfulness_estimate"
    chunk = chunk_of(f"metrics.{name}", chunk_size)

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        sums, drops = evaluate(lambda k: sets.single(key, k, k), sets.labeled.n, chunk)
        return sets.labeled.where_valid(correlation(sums, drops, where=sets.is_present))

    return Measure(
        name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=draws(baseline), key=key
    )


@checked()
def monotonicity_correlation(
    score: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement,
    n_samples: int = 10,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Monotonicity, as a rank correlation: $\rho_G\left(|R_G|, \mathbb E\left[\Delta_G^2\right]\right)$ over the
    groups, each replaced alone by draws. **High is good.**

    The importance of a feature is the squared change of the score if its value is unknown, i.e. the expectation over
    the values that it could have had.

    Arguments:
        baseline: The distribution of those values: `metrics.removal.uniform(low, high)`, or `jx.references(x_train)`
            (the paper's: values of other examples). With one that does not draw, it is the rank correlation with Δ², at
            one evaluation for each group.
        n_samples: Draws for each group.
        groups, n_groups, chunk_size, argnums, allow_random, key: As in `faithfulness_correlation`.

    Returns:
        `measure(attribution, x, *args, key=key)` → Spearman's coefficient in [−1, 1]; NaN if one side does not vary.

    Cost: 1 + n_samples · (number of groups) evaluations of the score.

    References:
        Nguyen, Martínez, On quantitative aspects of model interpretability, arXiv:2007.07584, 2020.
    """
    name = "monotonicity_correlation"
    chunk = chunk_of(f"metrics.{name}", chunk_size)
    is_drawn = draws(baseline)
    repeats = n_samples if is_drawn else 1

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        n = sets.labeled.n
        _, drops = evaluate(lambda i: sets.single(key, i, i // repeats), n * repeats, chunk)
        squares = jnp.mean(drops.reshape(n, repeats) ** 2, axis=1)
        ranks = rank_correlation(jnp.abs(sets.relevance), squares, where=sets.is_present)
        return sets.labeled.where_valid(ranks)

    return Measure(name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=is_drawn, key=key)


@checked(scale=flag)
def infidelity(
    score: Score,
    *,
    noise: LikeInput | None = None,
    subset_size: int | None = None,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    n_samples: int = 100,
    scale: bool = False,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Infidelity: $\mathbb E_I\left[\left(I^\top R - \left(f(x) - f(x - I)\right)\right)^2\right]$ over perturbations
    I.
    **Low is good.**

    R is read as a *slope*, such as a gradient: $I^\top R$ is the change that it predicts. Maps in units of f, such as
    x ⊙ ∇f, have to be divided by x − b first.

    Arguments:
        noise: Standard deviation of a Gaussian I: a number, a pytree like x, or a function of x.
        subset_size: Number of random groups that I moves to the baseline, $I = x - x_{\setminus S}$. The square removal
            of the paper is `subset_size=1, groups=jx.patches(4, 4)`. Exactly one of `noise` and `subset_size` is given.
        groups, n_groups, baseline: As in `pixel_flipping`; only with `subset_size`.
        n_samples: Number of perturbations drawn.
        scale: Whether to multiply R by the factor that minimizes the mean,
            $\beta = \mathbb E[I^\top R\, \Delta] / \mathbb E[(I^\top R)^2]$, as the paper does to compare methods whose
            maps have different units.
        chunk_size, argnums, allow_random, key: As in `faithfulness_correlation`.

    Returns:
        `measure(attribution, x, *args, key=key)` → the mean square, in units of f squared.

    Guarantees: 0 for ∇f of a linear f. With `noise` σ, the expectation is minimal for the gradient of the score
    smoothed by the same Gaussian, which is the limit of SmoothGrad.
    Cost: 1 + n_samples evaluations of the score.
    Differs from: Quantus removes every block on top of the earlier ones, and draws nothing. Captum's `normalize` is
    `scale`.

    References:
        Yeh, Hsieh, Suggala, Inouye, Ravikumar, On the (in)fidelity and sensitivity of explanations, NeurIPS 2019.
    """
    name = "infidelity"
    if (noise is None) == (subset_size is None):
        raise SettingError(
            explain_error(
                f"metrics.{name}: the input is perturbed either by noise, or by removing groups.",
                got=f"noise={noise!r}, subset_size={subset_size!r}",
                need="exactly one of them",
                fix=("noise=0.1", "subset_size=1, groups=jx.patches(4, 4)"),
            )
        )
    chunk = chunk_of(f"metrics.{name}", chunk_size)

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        value = call.value(call.x)
        if subset_size is None:
            is_valid, perturbed = jnp.array(True), _noisy(call, noise, key)
        else:
            sets = Sets(call, relevance, groups, n_groups, baseline)
            is_valid, perturbed = sets.labeled.is_valid, partial(sets.random_point, key, size=subset_size)

        def pair(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            point = upcast(cast_like(perturbed(k), call.arguments.leaves))  # what the score sees
            change = tuple(leaf - p for leaf, p in zip(call.x, point, strict=True))
            return total(tuple(i * r for i, r in zip(change, relevance, strict=True))), value - call.value(point)

        predicted, drops = evaluate(pair, n_samples, chunk)
        if scale:
            square = jnp.sum(predicted**2)
            predicted = predicted * jnp.where(
                square > 0, jnp.sum(predicted * drops) / jnp.where(square > 0, square, 1), 0
            )
        return jnp.where(is_valid, jnp.mean((predicted - drops) ** 2), jnp.nan)

    return Measure(name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=True, key=key)


@checked()
def monotonicity(
    score: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Monotonicity: the share of steps at which the score does not fall, as groups are put into the baseline, those of
    least R first. **High is good.**

    The paper only asks whether it is 1.

    Arguments, errors and guarantees are those of `pixel_flipping`.
    Returns: `measure(attribution, x, *args)` → a number in [0, 1].
    Cost: 1 + (number of groups) evaluations of the score.
    Differs from: Quantus writes the baseline again at every step, so that every map passes.

    References:
        Arya et al., One explanation does not fit all: a toolkit and taxonomy of AI explainability techniques,
        arXiv:1909.03012, 2019.
    """
    name = "monotonicity"
    chunk = chunk_of(f"metrics.{name}", chunk_size)

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        n = sets.labeled.n
        turn = sets.labeled.turns(sets.relevance)
        scores = evaluate(lambda k: call.value(sets.without(turn >= k, key, k)), n + 1, chunk)
        steps = jnp.arange(n) < jnp.sum(sets.is_present)
        share = jnp.mean((jnp.diff(scores) >= 0).astype(scores.dtype), where=steps)
        return sets.labeled.where_valid(jnp.where(jnp.isnan(scores).any(), jnp.nan, share))

    return Measure(
        name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=draws(baseline), key=key
    )


def _noisy(call: Call, noise: LikeInput | None, key: jax.Array) -> Callable[[jax.Array], Leaves]:
    """Returns k → x with noise, draw number k."""
    sigma = call.arguments.like(noise, "noise", none=jnp.zeros_like, not_negative=True)

    def point(k: jax.Array) -> Leaves:
        keys = jax.random.split(jax.random.fold_in(key, k), len(call.x))
        return tuple(
            leaf - s * jax.random.normal(one, leaf.shape, leaf.dtype)
            for one, s, leaf in zip(keys, sigma, call.x, strict=True)
        )

    return point


class Sets:
    """Sets of groups, with their relevance and the score without them."""

    def __init__(self, call: Call, relevance: Leaves, groups: GroupLabels, n_groups: int | None, baseline: Replacement):
        self.labeled: Groups = groups_of(call.arguments, groups, n_groups)
        self.relevance = self.labeled.totals(relevance)
        self.is_present = self.labeled.is_present
        self._fill = filler(call.arguments, baseline)
        self._call = call
        self._value = call.value(call.x)

    def without(self, is_removed: jax.Array, key: Any, k: jax.Array) -> Leaves:
        """x without these groups, draw number k of the replacement."""
        return self._fill(self.labeled.members(is_removed), None if key is None else jax.random.fold_in(key, k))

    def single(self, key: Any, k: jax.Array, group: jax.Array) -> tuple[jax.Array, jax.Array]:
        """R and Δ of one group."""
        point = self.without(jnp.arange(self.labeled.n, dtype=jnp.int32) == group, key, k)
        return self.relevance[group], self._value - self._call.value(point)

    def random(self, key: Any, k: jax.Array, size: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """R and Δ of a random set of `size` groups, number k."""
        set_key, fill_key = jax.random.split(key)
        chosen = self._chosen(set_key, k, size)
        drop = self._value - self._call.value(self.without(chosen, fill_key, k))
        return jnp.sum(self.relevance, where=chosen), drop

    def random_point(self, key: Any, k: jax.Array, size: int) -> Leaves:
        set_key, fill_key = jax.random.split(key)
        return self.without(self._chosen(set_key, k, size), fill_key, k)

    def _chosen(self, key: Any, k: jax.Array, size: jax.Array | int) -> jax.Array:
        n = self.labeled.n
        turn = jax.random.permutation(jax.random.fold_in(key, k), n)
        last = jnp.where(self.is_present, turn, n + turn)  # labels without features come last
        return jnp.argsort(jnp.argsort(last)).astype(jnp.int32) < size


def _require_fewer(name: str, setting: str, size: int, n: int) -> None:
    if size >= n:
        raise SettingError(
            explain_error(
                f"metrics.{name}: a set must hold fewer groups than x has.",
                got=f"{setting}: {size} of {n} groups",
                why="there is only one set of all groups, and a correlation needs several sets",
            )
        )
