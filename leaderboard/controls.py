"""Controls of the leaderboard."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._types import Explain, Score


def noise(score: Score, *, times_input: bool = False) -> Explain:
    """Lower control: N(0, 1) noise, with new draws whenever the score changes because of x, the class or the weights.

    `times_input` multiplies the noise by x. The result shows how much the input contributes alone, e.g. that black
    pixels of digits have no relevance.
    """

    def explain(x: jax.Array, *args: Any) -> jax.Array:
        bits = lax.bitcast_convert_type(score(x, *args).astype(jnp.float32), jnp.uint32)
        drawn = jax.random.normal(jax.random.fold_in(jax.random.key(0), bits), x.shape, x.dtype)
        return x * drawn if times_input else drawn

    return explain
