"""Axioms: does the attribution keep what is asked of every attribution? 0 is kept."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain._accumulate import evaluate
from jaxplain._arguments import Arguments
from jaxplain._checks import chunk_of, not_negative, positive_int
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call, explainer_behind
from jaxplain._leaves import cast_like, mapped_like, subtract, total, upcast
from jaxplain._references import References, pool_of
from jaxplain._types import Leaves
from jaxplain.metrics._explained import (
    ExplainerMeasure,
    all_finite,
    explainer_key,
    float_map,
    norm_of,
    require_explaining,
    require_function,
)
from jaxplain.metrics._faithfulness import Sets
from jaxplain.metrics._measure import Measure
from jaxplain.metrics.removal import Removal, draws


def completeness(
    score: Callable[..., Any],
    *,
    baseline: Any = 0.0,
    relative: bool = True,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Completeness (efficiency, summation to delta): $\left|\sum_i R_i - \left(f(x) - f(b)\right)\right| \Big/ \max\left(|f(x) - f(b)|, \sum_i |R_i|\right)$. **0 is complete.**

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        baseline: b, that of the attribution: a number, a pytree, a function of x, `jx.references(...)`, over all of which f(b) is the mean.
            Conservation, Σ R = f(x), knows no baseline: for it see the `gap` of `jx.with_info`.
        relative: `False` returns the numerator, in units of f. It is not divided by |f(x) − f(b)| alone: that may be 0, and terms that cancel add up no more exactly than the largest.
        chunk_size: references evaluated at once.
        argnums, allow_random: as in `gradient`.
        key: needed for `jx.references(pool, n)` alone, which draws n: with the key of `integrated_gradients` or `deeplift`, those that the attribution was made with.

    Returns:
        `measure(attribution, x, *args)` → a number ≥ 0; relative, at most 2. A map of zeros is complete if f(x) = f(b), else 1.

    Guarantees: relative, unchanged by a factor on f and R together. NaN if the attribution or one of the scores is not finite.
    Cost: 1 evaluation of the score, and 1 for each reference.
    Errors: an attribution or a baseline that does not fit x; a missing key.
    Differs from: Quantus tells whether two floats are equal, of a map that it has divided by its largest value before.

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
                need="what the method was given: a number, a pytree, a function of x, jx.references(...)",
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


def non_sensitivity(
    score: Callable[..., Any],
    *,
    baseline: Any,
    tolerance: float = 1e-5,
    groups: Any = None,
    n_groups: int | None = None,
    n_samples: int = 10,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Measure:
    r"""Non-sensitivity: are the features without attribution those that the score does not depend on? $|A_0 \mathbin{\triangle} X_0|$, as a share of all. **0 is good.**

    $A_0 = \{G : |R_G| \le \tau \max_H |R_H|\}$, and $X_0 = \{G : d_G \le \tau \max_H d_H\}$ with $d_G^2 = \mathbb E\left[\left(f(x) - f(x_{\setminus G})\right)^2\right]$; counted are the groups in exactly one of them.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        baseline: what a group is replaced by, as in `pixel_flipping`: the expectation is over its draws (`jx.references(x_train)`, `metrics.removal.uniform(low, high)`). **A feature that has the value
            of a fixed baseline already cannot be seen to matter**: black pixels under `baseline=0.0`.
        tolerance: τ, what counts as nothing beside the largest.
        groups, n_groups, chunk_size, argnums, allow_random, key: as in `pixel_flipping`.
        n_samples: draws for each group, the same for each: draw j is made with `fold_in(key, j)`.

    Returns:
        `measure(attribution, x, *args)` → a number in [0, 1]; the paper's is this times the number of groups.

    Guarantees: unchanged by a factor on the map and by one on the score. NaN if the attribution or one of the scores is not finite. Changes of the score that may be its rounding, up to
    16 units in the last place of its largest value, are none: in float32 a score of 10 says nothing about changes of 2e-5. A score in bfloat16 hides what is below its three digits.
    Cost: 1 + n_samples · (number of groups) evaluations of the score; one each if the baseline does not draw.
    Errors: those of `pixel_flipping`; a negative tolerance.
    Differs from: Quantus compares both sides with one absolute number, after dividing the maps by the largest value of the batch.

    References:
        Nguyen, Martínez, On quantitative aspects of model interpretability, arXiv:2007.07584, 2020.
    """
    name = "non_sensitivity"
    positive_int(f"metrics.{name}", "n_samples", n_samples)
    not_negative(f"metrics.{name}", "tolerance", tolerance)
    chunk = chunk_of(f"metrics.{name}", chunk_size)
    is_drawn = draws(baseline)
    repeats = n_samples if is_drawn else 1

    def compute(call: Call, relevance: Leaves, key: Any) -> jax.Array:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        n = sets.labeled.n

        def value(i: jax.Array) -> jax.Array:
            return call.value(sets.without(jnp.arange(n) == i // repeats, key, i % repeats))

        # f(x) is the last of them, without group n, which there is not: the same program, which rounds alike.
        scores = evaluate(value, n * repeats + 1, chunk)
        changes = jnp.abs(scores[-1] - scores[:-1]).reshape(n, repeats)
        most = jnp.max(changes)
        relative = changes / jnp.where(most == 0, 1, most)  # squares of tiny numbers would be 0
        drops = most * jnp.sqrt(jnp.mean(relative**2, axis=1))
        rounding = 16 * jnp.finfo(scores.dtype).eps * jnp.max(jnp.abs(scores))
        is_unused = drops <= jnp.maximum(tolerance * jnp.max(drops), rounding)
        sizes = jnp.abs(sets.relevance)
        differs = (sizes <= tolerance * jnp.max(sizes)) ^ is_unused
        share = jnp.mean(differs, dtype=drops.dtype, where=sets.is_present)
        return sets.labeled.where_valid(jnp.where(jnp.isfinite(scores).all(), share, jnp.nan))

    return Measure(name, score, compute, argnums=argnums, allow_random=allow_random, stochastic=is_drawn, key=key)


def input_invariance(
    method: Callable[[Callable[..., Any]], Callable[..., Any]],
    score: Callable[..., Any],
    *,
    shift: Any,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Input invariance: $\lVert R_{f'}(x + s) - R_f(x) \rVert_2 \big/ \lVert R_f(x) \rVert_2$ with $f'(z) = f(z - s)$. **0 is invariant.**

    A model of shifted data that undoes the shift is the same model, and its explanation should be the same. Methods that multiply with the input, or compare it with a fixed
    baseline, have other explanations: it is then the choice of 0 that is explained, too.

    Arguments:
        method: a function score → explainer: `jx.gradient`, `functools.partial(jx.lrp, rules=…)`, `lambda f: jx.smoothgrad(jx.gradient(f), …)`.
        score: `f(x, *args) -> real scalar` for one example.
        shift: s: a number, a pytree like x, or a function of x. With several argnums a tuple (`None`: not shifted).
        key: random key shared by all examples, if the method is stochastic; else `measure(x, *args, key=key)`. Both explanations have the same draws.

    Returns:
        `measure(x, *args)` → a number ≥ 0, a share of ‖R‖₂; norms run over all float leaves. NaN if R is 0, or one of the maps is not finite.

    Guarantees: measures the method alone: f is explained at (x + s) − s as it is rounded, the input that f′ sees. 0 to rounding for functions of ∇f; $\lVert s \odot \nabla f \rVert / \lVert x \odot \nabla f \rVert$
    for x ⊙ ∇f.
    Cost: two explanations.
    Errors: a method that is an explainer already.
    Differs from: the paper and Quantus move the shift into the biases of the first layer, here f′ subtracts it; for a propagation rule that makes a difference between them it is the latter that
    is measured. Quantus leaves the first feature unshifted, compensates convolutions with padding inexactly, and tells whether the maps are close.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: x[0] * 3.0
        >>> print(*(jx.metrics.input_invariance(method, score, shift=-1.0)(jnp.array([2.0])) for method in (jx.gradient, jx.input_x_gradient)))
        0.0 0.5

    References:
        Kindermans et al., The (un)reliability of saliency methods, in Explainable AI: interpreting, explaining and visualizing deep learning, 2019 (arXiv:1711.00867, 2017).
    """
    name = "metrics.input_invariance"
    if not callable(method) or explainer_behind(method) is not None:
        raise SettingError(
            explain_error(
                f"{name}: its first argument must be a function that makes an explainer of a score.",
                got=repr(method) if callable(method) else type(method).__name__,
                why="the method explains two scores: f, and f after a shift",
                fix=f"jx.{name}(jx.gradient, score, shift=…)",
            )
        )
    require_function(name, "score", score)
    explain = method(score)
    require_explaining(name, explain)
    argnums = getattr(explain, "argnums", 0)

    def compute(args: tuple, key: Any) -> jax.Array:
        arguments = Arguments(name, args, argnums)
        by = arguments.like(shift, "shift", none=jnp.zeros_like)

        def back(args: tuple) -> tuple:
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

    stochastic = getattr(explain, "needs_key", False)
    return ExplainerMeasure("input_invariance", compute, stochastic=stochastic, key=key)
