"""Controls, with which every method should be compared first. They are methods: `control(score) -> explain`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._accumulate import evaluate
from jaxplain._checks import checked, chunk_of
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._groups import groups_of
from jaxplain._leaves import common_dtype
from jaxplain._types import ArgNums, GroupLabels, Leaves, Score
from jaxplain.metrics.removal import Replacement, draws, filler

__all__ = ["greedy", "random_map"]


@checked()
def random_map(
    score: Score,
    *,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Lower control: an i.i.d. $\mathcal N(0, 1)$ map that ignores the score.

    Arguments:
        score: Staged but not evaluated, so that this control refuses what other methods refuse.
        argnums, allow_random: As in `gradient`.
        key: Random key shared by all examples; otherwise `explain(x, *args, key=key)`.

    Returns:
        `explain(x, *args, key=key)`, with the structure, shapes and dtypes of x.
    """

    def compute(call: Call, key: Any, _with_info: bool) -> tuple[Leaves, Info | None]:
        keys = jax.random.split(key, len(call.x))
        leaves = tuple(jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, call.x, strict=True))
        return leaves, Info(n_gradients=jnp.int32(0), n_evaluations=jnp.int32(0))

    return make_explainer(
        "metrics.controls.random_map",
        score,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=True,
        key=key,
        differentiated=False,
    )


@checked()
def greedy(
    score: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    baseline: Replacement = 0.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Upper control: each step removes the group without which the score is smallest,
    $G_k = \arg\min_G f(x_{\setminus G_1 \cup \dots \cup G_{k-1} \cup G})$.

    This is no explanation. It evaluates the score under the same removal that pixel flipping measures, so that a method
    that comes near it is good *at this metric*.

    Arguments:
        groups, n_groups, baseline, chunk_size, argnums, allow_random, key: As in `pixel_flipping`; pass the same there.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x: n for the features of the group removed first,
        down to 1 (an x of bfloat16 can only hold 256 different ranks).

    Guarantees: no first step can do better; later steps can, because it never looks ahead.
    Cost: n² evaluations of the score for n groups.
    """
    method = "metrics.controls.greedy"
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, _with_info: bool) -> tuple[Leaves, Info | None]:
        labeled = groups_of(call.arguments, groups, n_groups)
        n = labeled.n
        fill = filler(call.arguments, baseline)

        def step(is_removed: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
            draw = None if key is None else jax.random.fold_in(key, k)  # the same for all groups

            def without(group: jax.Array) -> jax.Array:
                return call.value(fill(labeled.members(is_removed | (jnp.arange(n, dtype=jnp.int32) == group)), draw))

            # The smallest score of the remaining groups; NaN comes last.
            chosen = jnp.lexsort((evaluate(without, n, chunk), is_removed))[0]
            return is_removed.at[chosen].set(True), chosen

        order = lax.scan(step, _compat.varying_like(jnp.zeros(n, bool), call.x[0]), jnp.arange(n))[1]
        dtype = common_dtype(*call.x)
        turn = jnp.zeros(n, dtype).at[order].set(n - jnp.arange(n, dtype=dtype))
        info = Info(value=call.value(call.x), n_gradients=jnp.int32(0), n_evaluations=jnp.int32(n * n + 1))
        return labeled.spread(turn, alone=0), info

    return make_explainer(
        method,
        score,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=draws(baseline),
        key=key,
        differentiated=False,
    )
