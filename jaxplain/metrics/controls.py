"""Controls: what an explanation is compared with before it is compared with another. They are methods like any other, `control(score) -> explain`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._accumulate import evaluate
from jaxplain._checks import chunk_of
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._groups import groups_of
from jaxplain._types import Leaves
from jaxplain.metrics.removal import draws, filler

__all__ = ["greedy", "random_map"]


def random_map(
    score: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""The control below: a map of independent $\mathcal N(0, 1)$ draws, which knows nothing of the score.

    Arguments:
        score: it is staged, so that what other methods refuse is refused here too, and not evaluated.
        argnums, allow_random: as in `gradient`.
        key: random key shared by all examples; otherwise `explain(x, *args, key=key)`.

    Returns:
        `explain(x, *args, key=key)`, with the structure, shapes and dtypes of x.
    """

    def compute(call: Call, key: Any, _with_info: bool) -> tuple[Leaves, Info | None]:
        keys = jax.random.split(key, len(call.x))
        leaves = tuple(jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, call.x, strict=True))
        return leaves, Info(n_gradients=jnp.int32(0))

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


def greedy(
    score: Callable[..., Any],
    *,
    groups: Any = None,
    n_groups: int | None = None,
    baseline: Any = 0.0,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""The control above: at each step remove the group without which the score is least, $G_k = \arg\min_G f(x_{\setminus G_1 \cup \dots \cup G_{k-1} \cup G})$.

    No explanation: it asks the score itself, under the very removal that is measured, and knows what pixel flipping rewards. A method that comes near it is good *at this
    metric*.

    Arguments:
        groups, n_groups, baseline, chunk_size, argnums, allow_random, key: as in `pixel_flipping`; give the same there.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x: n for the features of the group removed first, down to 1
        (an x of bfloat16 holds only 256 different turns).

    Guarantees: no first step can do better; later ones may, since it never looks ahead.
    Cost: n² evaluations of the score for n groups.
    """
    method = "metrics.controls.greedy"
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, _with_info: bool) -> tuple[Leaves, Info | None]:
        labeled = groups_of(call.arguments, groups, n_groups)
        n = labeled.n
        fill = filler(call.arguments, baseline)

        def step(is_removed: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
            draw = None if key is None else jax.random.fold_in(key, k)  # the same for all that are compared

            def without(group: jax.Array) -> jax.Array:
                return call.value(fill(labeled.members(is_removed | (jnp.arange(n) == group)), draw))

            # The least score of those that are left; one that is NaN comes last.
            chosen = jnp.lexsort((evaluate(without, n, chunk), is_removed))[0]
            return is_removed.at[chosen].set(True), chosen

        order = lax.scan(step, _compat.varying_like(jnp.zeros(n, bool), call.x[0]), jnp.arange(n))[1]
        turn = jnp.zeros(n, jnp.result_type(*call.x)).at[order].set(n - jnp.arange(n))
        return labeled.spread(turn, alone=0), Info(value=call.value(call.x), n_gradients=jnp.int32(n * n))

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
