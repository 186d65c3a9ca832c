"""Backpropagation with changed derivatives of activations: guided backpropagation and deconvolution."""

import jax
import jax.numpy as jnp

from jaxplain._analysis.nodes import KINDS
from jaxplain._engine.node_view import Layer
from jaxplain.rules._rule import Rule
from jaxplain.rules.composites import Composite


def derivative() -> Rule:
    """The node's own derivative."""
    return Rule("derivative", KINDS, None)


def guided() -> Rule:
    """σ′(x) · max(R, 0); σ′(x) · min(R, 0) for a reflected activation, since 1 − sigmoid holds a weight of −1."""

    def backward(layer: Layer, arriving: jax.Array) -> tuple[jax.Array, ...]:
        return layer.transpose(_rectified(arriving, layer.node.gain))

    return Rule("guided", ("activation",), backward)


def deconvolved() -> Rule:
    """g · max(R, 0) with the gain g of the activation, which is 1 for relu; g · min(R, 0) for a reflected one."""

    def backward(layer: Layer, arriving: jax.Array) -> jax.Array:
        gain = layer.node.gain
        return _rectified(arriving, gain) * jnp.asarray(1 if gain is None else gain, arriving.dtype)

    return Rule("deconvolved", ("activation",), backward)


def _rectified(arriving: jax.Array, gain: float | None) -> jax.Array:
    return jnp.minimum(arriving, 0) if gain is not None and gain < 0 else jnp.maximum(arriving, 0)


_KNOWN = tuple((kind, derivative()) for kind in KINDS if kind != "unknown")
GUIDED = Composite("guided_backprop", (*_KNOWN, ("activation", guided())), derivative())
DECONVOLVED = Composite("deconvnet", (*_KNOWN, ("activation", deconvolved())), derivative())
