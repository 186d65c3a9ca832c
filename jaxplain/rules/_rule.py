"""What a rule is, and the arithmetic that the LRP rules share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._engine.node_view import Layer, Weights
from jaxplain._leaves import same_dtype, wide_dtype

Relevance = jax.Array


class Rule(NamedTuple):
    """How relevance goes back through a node.

    Attributes:
        name: for tables and messages.
        kinds: the kinds of node that it can be applied to (`jaxplain._analysis.analyze.KINDS`).
        backward: `backward(layer, *relevance) -> relevance of the input`, or a tuple with one entry for each input. `layer` is
            the node as it was evaluated; there is one relevance for each of its outputs. `None`: the node's own derivative.
        epsilon: the stabilizer it was built with, for composites that derive other rules from it.
        box: bounds of the explained input that it needs; `layer.box` is what they are at the layer.
    """

    name: str
    kinds: tuple[str, ...]
    backward: Callable[..., Relevance | tuple[Relevance, ...]] | None
    epsilon: float = 1e-6
    box: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return self.name


def stabilize(z: jax.Array, epsilon: float) -> jax.Array:
    """z + ε·sign(z), with sign(0) = +1: a denominator that is never zero and keeps its sign. In float32 or better."""
    z = z.astype(wide_dtype(z))
    if isinstance(epsilon, int | float) and epsilon == 0:
        return jnp.where(z == 0, jnp.finfo(z.dtype).tiny, z)  # no relevance at an output of zero stays none
    return z + jnp.where(z >= 0, epsilon, -epsilon)


def times(v: jax.Array, share: jax.Array) -> jax.Array:
    """v · share, where no share means no relevance even of an infinite value (a masked logit)."""
    v, share = same_dtype(v, share)
    # The value is replaced, not the product: else the derivative with respect to the share would be 0 · ∞.
    return jnp.where(jnp.isinf(v) & (share == 0), 0, v) * share


def distribute(
    layer: Layer,
    relevance: Relevance,
    terms: Sequence[tuple[jax.Array, Weights]],
    *,
    bias: jax.Array | float = 0.0,
    epsilon: float = 1e-6,
) -> Relevance:
    """Relevance in proportion to contributions: R_i = Σ_terms v_i Σ_j w_ij R_j / stab(z_j), with z = Σ_terms w·v + bias.

    Each term is a vector in the layout of the layer's input, and which weights it meets: "full", "positive", "negative", "squared",
    "absolute" or "ones". What goes to the bias is lost, and counted in the ledger.
    """
    z: jax.Array | float = bias
    pullbacks = []
    # Else the transpose would sum over the devices of a `shard_map`.
    terms = [(_compat.varying_like(v, jax.typeof(layer.x)), weights) for v, weights in terms]
    for v, weights in terms:
        contribution, pullback = jax.vjp(layer.linear(weights), v)
        z = z + contribution
        pullbacks.append(pullback)
    share = relevance / stabilize(jnp.asarray(z), epsilon)
    layer.to_bias = layer.to_bias + jnp.sum(times(jnp.broadcast_to(bias, share.shape), share))
    share = share.astype(layer.output.dtype)
    parts = [times(v, pullback(share)[0]) for (v, _), pullback in zip(terms, pullbacks, strict=True)]
    return sum(parts[1:], parts[0])
