"""What a rule is, and the arithmetic that the LRP rules share."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxplain import _compat
from jaxplain._engine.node_view import Layer, Weights
from jaxplain._leaves import pulled_back, representable, same_dtype, wide_dtype

Relevance = jax.Array


class Rule(NamedTuple):
    """How relevance goes back through a node.

    Attributes:
        name: Name for tables and messages.
        kinds: Kinds of nodes that it supports, from `jx.rules.KINDS`.
        backward: Maps `(layer, *relevance)` to the relevance of the input, or to a tuple with one entry for each input.
            `layer` is the evaluated node, and there is one `relevance` for each of its outputs. Multiply values and
            shares of relevance by `rules.times`, i.e. v * share with ∞·0 = 0. None stands for the node's derivative.
        epsilon: Stabilizer that it was built with, for composites that derive other rules from it.
        box: Bounds of the explained input that it needs. `layer.box` holds the bounds of the layer's own input.
        splits_additions: Whether it reads `layer.contributions` at additions: "weights", or with biases, "all".
    """

    name: str
    kinds: tuple[str, ...]
    backward: Callable[..., Relevance | tuple[Relevance, ...]] | None
    epsilon: float = 1e-6
    box: tuple[ArrayLike, ArrayLike] | None = None
    splits_additions: Literal["weights", "all"] | None = None

    def __repr__(self) -> str:
        return self.name


def shown(number: Any) -> str:
    """A setting in the name of a rule, which may be traced."""
    return "traced" if isinstance(number, jax.core.Tracer) else f"{float(number):g}"


def stabilize(z: jax.Array, epsilon: float) -> jax.Array:
    """z + ε·sign(z) with sign(0) = +1, in float32 or better. This denominator is never zero and has the sign of z.

    ε is at least the smallest normal number of the dtype of z, because what is divided goes through that dtype.
    """
    smallest = float(jnp.finfo(z.dtype).tiny)
    floor = representable(epsilon, z.dtype)
    z = z.astype(wide_dtype(z))
    if isinstance(epsilon, int | float) and epsilon == 0:
        return jnp.where(z == 0, smallest, z)  # 0 relevance at a zero output stays 0
    return z + jnp.where(z >= 0, floor, -floor)


def times(v: jax.Array, share: jax.Array) -> jax.Array:
    """v * share, with ∞·0 = 0, so that a masked logit without a share gets no relevance."""
    v, share = same_dtype(v, share)
    # The value is replaced and not the product, because the derivative with respect to the share would be 0·∞.
    return jnp.where(jnp.isinf(v) & (share == 0), 0, v) * share


def distribute(
    layer: Layer,
    relevance: Relevance,
    terms: Sequence[tuple[jax.Array, Weights]],
    *,
    bias: jax.Array | float = 0.0,
    epsilon: float = 1e-6,
) -> Relevance:
    """Relevance in proportion to contributions: R_i = Σ_terms v_i Σ_j w_ij R_j / stab(z_j), z = Σ_terms w·v + bias.

    Each term is a pair of an array v in the layout of the layer's input and the name of the weights w that multiply it:
    "full", "positive", "negative", "squared", "absolute" or "ones". The share of the bias is lost, and is counted in
    the ledger. For example, `distribute(layer, relevance, [(layer.x, "full")], bias=layer.bias)` is LRP-ε.
    """
    z: jax.Array | float = bias
    pullbacks = []
    # Otherwise the transpose would sum over the devices of a `shard_map`.
    terms = [(_compat.varying_like(v, jax.typeof(layer.x)), weights) for v, weights in terms]
    for v, weights in terms:
        contribution, pullback = jax.vjp(layer.linear(weights), v)
        z = z + contribution
        pullbacks.append(pullback)
    share = relevance / stabilize(jnp.asarray(z), epsilon)
    layer.to_bias = layer.to_bias + jnp.sum(times(jnp.broadcast_to(bias, share.shape), share))
    dtype = layer.output.dtype
    parts = [
        times(v, pulled_back(pullback, [share], [dtype])[0]) for (v, _), pullback in zip(terms, pullbacks, strict=True)
    ]
    return sum(parts[1:], parts[0])
