"""Complexity: how few features does the explanation name?

A simple map need not be right: a single random pixel is the simplest map of all. Read these measures together with
those of faithfulness.

`sparseness` and `complexity` only read the map: `metric(**settings) -> measure`, `measure(attribution)` → one number
for one example, whose map is any pytree of float arrays. `effective_complexity` also evaluates the score.
`sufficiency` compares the maps of a set of examples.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import entr
from jax.typing import ArrayLike

from jaxplain._accumulate import evaluate
from jaxplain._checks import checked, chunk_of, number
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._explainer import Call
from jaxplain._types import ArgNums, GroupLabels, Leaves, PyTree, Score
from jaxplain.metrics._faithfulness import Sets
from jaxplain.metrics._protocol import CurveMeasure, float_map
from jaxplain.metrics.removal import Replacement, draws


class Kept(NamedTuple):
    """The error when only the most relevant groups are kept.

    Attributes:
        share: Share of the groups that are kept, from 0 to 1.
        error: Mean of $(f(x) - f(x'))^2$, where x′ is x with all other groups replaced.
    """

    share: jax.Array
    error: jax.Array


def sparseness() -> Callable[[PyTree], jax.Array]:
    r"""Sparseness: the Gini index of |R|, $\sum_k \frac{2k - n - 1}{n} v_k \Big/ \sum_k v_k$ with
    $v_1 \le \dots \le v_n$ the sorted $|R_i|$. **High is simple.**

    Returns:
        `measure(attribution)`: a pytree of float arrays → a number in [0, 1 − 1/n]: 0 if all |R| are equal, 1 − 1/n if
        only one is not 0.

    Guarantees: unchanged by a factor on R, by signs and by order; m copies of a map together have the same value.
    NaN for a map that is 0 everywhere, or not finite.
    Cost: a sort.
    Errors: `InputError` for a map without float arrays.
    Differs from: Quantus adds 1e-7 to every |R|, so that small maps look less sparse.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> print(jx.metrics.sparseness()(jnp.array([0.0, 0.0, -2.0, 0.0])))
        0.75

    References:
        Hurley, Rickard, Comparing measures of sparsity, IEEE Transactions on Information Theory 55, 2009.
        Chalasani, Chen, Chowdhury, Jha, Wu, Concise explanations of neural networks using adversarial training, ICML
        2020.
    """

    def measure(attribution: PyTree) -> jax.Array:
        ordered = jnp.sort(_shares("sparseness", attribution))
        n = ordered.size
        return jnp.sum((2 * jnp.arange(1, n + 1, dtype=ordered.dtype) - n - 1) / n * ordered)

    return measure


@checked()
def complexity(*, normalize: bool = False) -> Callable[[PyTree], jax.Array]:
    r"""Complexity: the entropy of the shares of |R|, $-\sum_i p_i \ln p_i$ with $p_i = |R_i| \big/ \sum_j |R_j|$ and
    $0 \ln 0 = 0$. **Low is simple.**

    Arguments:
        normalize: Whether to divide by ln n, to compare inputs of different sizes.

    Returns:
        `measure(attribution)`: a pytree of float arrays → a number in [0, ln n] nats (normalized: in [0, 1]): 0 if only
        one |R| is not 0, and the maximum if all are equal. Its exponential is an effective number of features: m for m
        equal values.

    Guarantees: unchanged by a factor on R, by signs and by order. NaN for a map that is 0 everywhere, or not finite.
    Errors: `InputError` for a map without float arrays.
    Differs from: Quantus takes the logarithm of $p_i$ + 1e-12.

    References:
        Bhatt, Weller, Moura, Evaluating and aggregating feature-based model explanations, IJCAI 2020.
    """

    def measure(attribution: PyTree) -> jax.Array:
        shares = _shares("complexity", attribution)
        entropy = jnp.sum(entr(shares))
        return entropy / (math.log(shares.size) or 1) if normalize else entropy

    return measure


@checked(tolerance=number())
def effective_complexity(
    score: Score,
    *,
    tolerance: ArrayLike,
    baseline: Replacement,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    n_samples: int = 10,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> CurveMeasure:
    r"""Effective complexity: how many features have to be kept? The least k with
    $\mathbb E\left[\left(f(x) - f(x_{\setminus \overline{G_1 \cup \dots \cup G_k}})\right)^2\right] < \varepsilon$,
    $|R_{G_1}| \ge |R_{G_2}| \ge \dots$ **Low is simple.**

    A map that names the right features first lets all others be ignored early, whatever values it gives them.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        tolerance: ε > 0, in units of f *squared*: `0.1**2` if the score, for example a probability, may be off by 0.1.
        baseline: The replacement of all other groups, as in `pixel_flipping`. The expectation is over its draws:
            `jx.references(x_train)` or `metrics.removal.uniform(low, high)`. One that does not draw costs one
            evaluation for each k.
        groups, n_groups, chunk_size, argnums, allow_random, key: As in `pixel_flipping`. Of equal |R| the smaller label
            comes first.
        n_samples: Draws of the replacement, the same for each k: draw j is made with `fold_in(key, j)`.

    Returns:
        `measure(attribution, x, *args)` → k as a **share** of the groups, in [0, 1]: 0 if even the baseline has the
        score of x, 1 if every feature is needed. The paper's number is this times the number of groups.
        `measure.curve(attribution, x, *args)` → `Kept(share, error)` for every k, which answers for any tolerance.

    Guarantees: depends on the attribution only by the order of |R|. Some k is always found, because the error is 0 if
    everything is kept. Errors need not fall with k: the *first* k below the tolerance counts. NaN if the attribution or
    a score is not finite, or for a traced tolerance that is not positive.
    Cost: 1 + n_samples · (number of groups) evaluations of the score.
    Errors: those of `pixel_flipping`; a tolerance that is not positive.
    Differs from: in the paper, the expectation is conditional on the kept features; here, draws do not depend on them.
    Quantus counts the features with |R| > ε, and evaluates no model.

    References:
        Nguyen, Martínez, On quantitative aspects of model interpretability, arXiv:2007.07584, 2020.
    """
    name = "effective_complexity"
    if not isinstance(tolerance, jax.core.Tracer) and tolerance == 0:
        raise SettingError(
            explain_error(
                f"metrics.{name}: `tolerance` must be positive.",
                got=repr(tolerance),
                need="a bound on the mean of (f(x) − f(x′))²",
                fix="tolerance=0.1**2, for a score that may be off by 0.1",
            )
        )
    chunk = chunk_of(f"metrics.{name}", chunk_size)
    is_drawn = draws(baseline)
    repeats = n_samples if is_drawn else 1

    def compute(call: Call, relevance: Leaves, key: Any) -> Kept:
        sets = Sets(call, relevance, groups, n_groups, baseline)
        n = sets.labeled.n
        turn = sets.labeled.turns(-jnp.abs(sets.relevance))
        value = call.value(call.x)
        scores = evaluate(
            lambda i: call.value(sets.without(turn >= i // repeats, key, i % repeats)), n * repeats, chunk
        )
        errors = jnp.mean((value - scores.reshape(n, repeats)) ** 2, axis=1)
        errors = jnp.append(errors, 0)  # with everything kept
        n_present = jnp.sum(sets.is_present, dtype=errors.dtype)
        share = jnp.minimum(jnp.arange(n + 1, dtype=errors.dtype), n_present) / n_present
        return Kept(share, sets.labeled.where_valid(errors))

    def first(kept: Kept) -> jax.Array:
        is_small = kept.error < tolerance
        share = jnp.take_along_axis(kept.share, jnp.argmax(is_small, axis=-1, keepdims=True), axis=-1)[..., 0]
        is_known = jnp.isfinite(kept.error).all(axis=-1) & is_small.any(axis=-1)
        return jnp.where(is_known, share, jnp.nan)

    return CurveMeasure(
        name, score, compute, first, argnums=argnums, allow_random=allow_random, stochastic=is_drawn, key=key
    )


@checked(threshold=None)
def sufficiency(*, threshold: float = 0.6) -> Callable[[PyTree, ArrayLike], jax.Array]:
    r"""Sufficiency: do examples with similar explanations have the same prediction?
    $\left|\{j \in N_i : \hat y_j = \hat y_i\}\right| \big/ |N_i|$,
    $N_i = \{j \ne i : d_{ij} \le \tau \max_{kl} d_{kl}\}$. **High is good.**

    $d_{ij}$ is the Euclidean distance of the maps, each feature divided by its standard deviation over the set.

    Arguments:
        threshold: τ in [0, 1], the share of the largest distance of the set up to which explanations are similar.

    Returns:
        `measure(attributions, predictions)`: the stacked maps of n examples (a pytree of float arrays, each with n as
        its leading axis) and their predicted classes, n integers → n numbers in [0, 1]. NaN for an example without
        neighbors: average with `jnp.nanmean`, and check how many are left.

    Guarantees: unchanged by a factor on all maps, or on one feature of all maps. A feature that is the same in all maps
    is ignored. If one map is not finite all values are NaN, because distances are relative to the set.
    Cost: n² distances, one row at a time: the memory of a second copy of the maps, and n² numbers.
    Errors: `SettingError` for the threshold, `InputError` for maps without float arrays, `StructureError` for shapes
    that do not match, or predictions that are not integers.
    Differs from: in the paper, the other examples are all those that the explanation *holds for* (an anchor's rule),
    and the expectation is over the data. For maps, nearness takes the place of that rule, as in Quantus. Quantus gives
    0 to an example without neighbors, and NaN to all examples if one feature never varies.

    References:
        Dasgupta, Frost, Moshkovitz, Framework for evaluating faithfulness of local explanations, ICML 2022.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise SettingError(
            explain_error(
                "metrics.sufficiency: `threshold` is a share of the largest distance.",
                got=repr(threshold),
                need="a number in [0, 1]",
            )
        )

    def measure(attributions: PyTree, predictions: ArrayLike) -> jax.Array:
        leaves = float_map("metrics.sufficiency", "the attribution", attributions)
        labels = jnp.asarray(predictions)
        if (
            not jnp.issubdtype(labels.dtype, jnp.integer)
            or labels.ndim != 1
            or any(leaf.shape[:1] != labels.shape for leaf in leaves)
        ):
            raise StructureError(
                explain_error(
                    "metrics.sufficiency: needs the maps of a set of examples and their predicted classes.",
                    got=f"maps {[leaf.shape for leaf in leaves]}, predictions {labels.dtype}{list(labels.shape)}",
                    need="one leading axis for all, and integers (n,)",
                    fix="measure(jax.vmap(explain)(xs, labels), jnp.argmax(model(xs), axis=-1))",
                )
            )
        maps = jnp.concatenate([leaf.reshape(len(labels), -1) for leaf in leaves], axis=1)
        # By the largest value first, because the squares of tiny numbers would underflow.
        for size in (lambda m: jnp.max(jnp.abs(m), axis=0, keepdims=True), lambda m: jnp.std(m, axis=0, keepdims=True)):
            maps = maps / jnp.where(size(maps) == 0, 1, size(maps))
        distances = lax.map(lambda row: jnp.linalg.norm(maps - row[None], axis=1), maps)
        is_near = (distances <= threshold * jnp.max(distances, initial=0)) & ~jnp.eye(len(labels), dtype=bool)
        n_near = jnp.sum(is_near, axis=1)
        n_same = jnp.sum(is_near & (labels[None] == labels[:, None]), axis=1)
        return jnp.where(n_near > 0, n_same / jnp.maximum(n_near, 1), jnp.nan).astype(maps.dtype)

    return measure


def _shares(name: str, attribution: PyTree) -> jax.Array:
    """All |R| divided by their sum, as one vector; NaN if the sum is 0."""
    leaves = float_map(f"metrics.{name}", "the attribution", attribution)
    sizes = jnp.abs(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]))
    sizes = sizes / jnp.max(sizes, initial=0)  # the sum of large numbers would overflow
    return sizes / jnp.sum(sizes)
