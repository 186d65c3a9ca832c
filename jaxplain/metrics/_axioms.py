"""Axioms: does the attribution have the properties that every attribution should have? A value of 0 means yes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain._accumulate import evaluate
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, chunk_of, number
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call, explainer_behind
from jaxplain._leaves import cast_like, mapped_like, subtract, total, upcast
from jaxplain._references import References, pool_of
from jaxplain._types import ArgNums, Args, Baseline, Explain, GroupLabels, Leaves, LikeInput, Score, traits
from jaxplain.metrics._faithfulness import Sets
from jaxplain.metrics._protocol import (
    ExplainerMeasure,
    Measure,
    all_finite,
    explainer_key,
    float_map,
    norm_of,
    require_explaining,
    require_function,
)
from jaxplain.metrics.removal import Removal, Replacement, draws


@checked()
def completeness(
    score: Score,
    *,
    baseline: Baseline = 0.0,
    relative: bool = True,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Completeness (efficiency, summation to delta):
    $\left|\sum_i R_i - \left(f(x) - f(b)\right)\right| \Big/ \max\left(|f(x) - f(b)|, \sum_i |R_i|\right)$.
    **0 is complete.**

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        baseline: The baseline b of the attribution: a number, a pytree, a function of x, or `jx.references(...)`, where
            f(b) is the mean over the references. Conservation, Σ R = f(x), has no baseline: see the `gap` of
            `jx.with_info` instead.
        relative: `False` returns the numerator, in units of f. The denominator is not |f(x) − f(b)| alone, because that
            may be 0, and because a sum of terms that cancel is no more exact than its largest term.
        chunk_size: References evaluated at once.
        argnums, allow_random: As in `gradient`.
        key: Random key, only needed for `jx.references(pool, n)`, which draws n references: pass the key that the
            attribution was made with.

    Returns:
        `measure(attribution, x, *args)` → a number ≥ 0; if relative, at most 2. A map of zeros has 0 if f(x) = f(b),
        else 1.

    Guarantees: if relative, unchanged by a common factor on f and R. NaN if the attribution or a score is not finite.
    Cost: 1 evaluation of the score, and 1 for each reference.
    Errors: an attribution or a baseline that does not fit x; a missing key.
    Differs from: Quantus tests two floats for equality, after dividing the map by its largest value.

    References:
        Sundararajan, Taly, Yan, Axiomatic attribution for deep networks, ICML 2017.
    """
    name = "completeness"
    chunk = chunk_of(f"metrics.{name}", chunk_size)
    stochastic = isinstance(baseline, References) and baseline.n is not None
    if isinstance(baseline, Removal):
        raise SettingError(
            explain_error(
                f"metrics.{name}: `baseline` is the point that the attribution was measured from.",
                got=repr(baseline),
                need="the baseline of the method: a number, a pytree, a function of x, jx.references(...)",
            )
        )

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        pool, n = pool_of(call.arguments, baseline, key)
        base = evaluate(lambda r: call.value(mapped_like(call.x, tuple(leaf[r] for leaf in pool))), n, chunk)
        summed = total(relevance)
        difference = (call.value(call.x) - jnp.mean(base)).astype(summed.dtype)
        gap = jnp.abs(summed - difference)
        if not relative:
            return gap
        scale = jnp.maximum(jnp.abs(difference), total(tuple(map(jnp.abs, relevance))))
        return gap / jnp.where(scale == 0, 1, scale)

    return Measure(name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=stochastic, key=key)


@checked(tolerance=number())
def non_sensitivity(
    score: Score,
    *,
    baseline: Replacement,
    tolerance: float = 1e-5,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    n_samples: int = 10,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Non-sensitivity: are the features without attribution those that the score does not depend on?
    $|A_0 \mathbin{\triangle} X_0|$, as a share of all features. **0 is good.**

    $A_0 = \{G : |R_G| \le \tau \max_H |R_H|\}$ holds the groups without attribution, and
    $X_0 = \{G : d_G \le \tau \max_H d_H\}$ with
    $d_G^2 = \mathbb E\left[\left(f(x) - f(x_{\setminus G})\right)^2\right]$ the groups without influence. The groups in
    exactly one of the two sets are counted.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        baseline: The replacement of a removed group, as in `pixel_flipping`. The expectation is over its draws:
            `jx.references(x_train)` or `metrics.removal.uniform(low, high)`. **With a fixed baseline, features that
            already have its value seem not to matter**, for example black pixels with `baseline=0.0`.
        tolerance: Threshold τ below which a value counts as 0, relative to the largest value.
        groups, n_groups, chunk_size, argnums, allow_random, key: As in `pixel_flipping`.
        n_samples: Draws for each group, the same for all groups: draw j is made with `fold_in(key, j)`.

    Returns:
        `measure(attribution, x, *args)` → a number in [0, 1]; the paper's is this times the number of groups.

    Guarantees: unchanged by a factor on the map, and by a factor on the score. NaN if the attribution or a score is not
    finite. Changes of the score within rounding, i.e. up to 16 units in the last place of its largest value, count as
    0: in float32, a score of 10 does not resolve changes of 2e-5, and bfloat16 has only three digits.
    Cost: 1 + n_samples · (number of groups) evaluations of the score; 1 for each group if the baseline does not draw.
    Errors: those of `pixel_flipping`; a negative tolerance.
    Differs from: Quantus compares both sides with one absolute number, after dividing all maps of a batch by the
    largest value.

    References:
        Nguyen, Martínez, On quantitative aspects of model interpretability, arXiv:2007.07584, 2020.
    """
    name = "non_sensitivity"
    chunk = chunk_of(f"metrics.{name}", chunk_size)
    is_drawn = draws(baseline)
    repeats = n_samples if is_drawn else 1

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        n = sets.labeled.n

        def value(i: jax.Array) -> jax.Array:
            return call.value(sets.without(jnp.arange(n, dtype=jnp.int32) == i // repeats, key, i % repeats))

        # The last one is f(x): it removes group n, which does not exist. As the same program it rounds alike.
        scores = evaluate(value, n * repeats + 1, chunk)
        changes = jnp.abs(scores[-1] - scores[:-1]).reshape(n, repeats)
        most = jnp.max(changes)
        relative = changes / jnp.where(most == 0, 1, most)  # the squares of tiny numbers would underflow
        drops = most * jnp.sqrt(jnp.mean(relative**2, axis=1))
        rounding = 16 * jnp.finfo(scores.dtype).eps * jnp.max(jnp.abs(scores))
        is_unused = drops <= jnp.maximum(tolerance * jnp.max(drops), rounding)
        sizes = jnp.abs(sets.relevance)
        differs = (sizes <= tolerance * jnp.max(sizes)) ^ is_unused
        share = jnp.mean(differs, dtype=drops.dtype, where=sets.is_present)
        return sets.labeled.where_valid(jnp.where(jnp.isfinite(scores).all(), share, jnp.nan))

    return Measure(name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=is_drawn, key=key)


def input_invariance(
    method: Callable[[Score], Explain],
    score: Score,
    *,
    shift: LikeInput,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Input invariance: $\lVert R_{f'}(x + s) - R_f(x) \rVert_2 \big/ \lVert R_f(x) \rVert_2$ with $f'(z) = f(z - s)$.
    **0 is invariant.**

    A model of shifted data that undoes the shift is the same model, so its explanation should be the same. Methods that
    multiply by the input, or compare it with a fixed baseline, violate this: they also explain the choice of 0.

    Arguments:
        method: Function score → explainer: `jx.gradient`, `functools.partial(jx.lrp, rules=…)`,
            `lambda f: jx.smoothgrad(jx.gradient(f), …)`.
        score: `f(x, *args) -> real scalar` for one example.
        shift: Shift s: a number, a pytree like x, or a function of x. With several argnums a tuple (`None`: no shift).
        key: Random key shared by all examples, if the method is stochastic; otherwise `measure(x, *args, key=key)`.
            Both explanations have the same draws.

    Returns:
        `measure(x, *args)` → a number ≥ 0, a share of ‖R‖₂; norms run over all float leaves. NaN if R is 0, or if a map
        is not finite.

    Guarantees: measures only the method, because f is explained at (x + s) − s as rounded, the input that f′ sees.
    0 to rounding for functions of ∇f; $\lVert s \odot \nabla f \rVert / \lVert x \odot \nabla f \rVert$ for x ⊙ ∇f.
    Cost: two explanations.
    Errors: an explainer in place of a method.
    Differs from: the paper and Quantus move the shift into the biases of the first layer, where f′ subtracts it here. A
    propagation rule may distinguish the two, and then it is this form that is measured. Quantus does not shift the
    first feature, is inexact for convolutions with padding, and only tests whether the maps are close.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: x[0] * 3.0
        >>> for method in (jx.gradient, jx.input_x_gradient):
        ...     print(jx.metrics.input_invariance(method, score, shift=-1.0)(jnp.array([2.0])))
        0.0
        0.5

    References:
        Kindermans et al., The (un)reliability of saliency methods, in Explainable AI: interpreting, explaining and
        visualizing deep learning, 2019 (arXiv:1711.00867, 2017).
    """
    name = "metrics.input_invariance"
    if not callable(method) or explainer_behind(method) is not None:
        raise SettingError(
            explain_error(
                f"{name}: its first argument must be a function that makes an explainer from a score.",
                got=repr(method) if callable(method) else type(method).__name__,
                why="the method explains two scores: f, and f after a shift",
                fix=f"jx.{name}(jx.gradient, score, shift=…)",
            )
        )
    require_function(name, "score", score)
    explain = method(score)
    require_explaining(name, explain)
    argnums = traits(explain).argnums

    def compute(args: Args, key: Any) -> jax.Array:
        arguments = Arguments(name, args, argnums)
        by = arguments.like(shift, "shift", none=jnp.zeros_like)

        def back(args: Args) -> Args:
            there = Arguments(name, args, argnums)
            return there.fill(cast_like(subtract(upcast(there.leaves), by), there.leaves))

        moved = cast_like(tuple(x + s for x, s in zip(upcast(arguments.leaves), by, strict=True)), arguments.leaves)
        there = arguments.fill(moved)
        keyword = explainer_key(explain, key)
        here = float_map(name, "the attribution", explain(*back(there), **keyword))
        other = float_map(name, "the attribution", method(lambda *z: score(*back(z)))(*there, **keyword))
        size, change = norm_of(here, 2), norm_of(subtract(other, here), 2)
        is_known = all_finite(here) & all_finite(other) & (size > 0)
        return jnp.where(is_known, change / jnp.where(size > 0, size, 1), jnp.nan)

    return ExplainerMeasure("input_invariance", compute, stochastic=traits(explain).needs_key, key=key)
