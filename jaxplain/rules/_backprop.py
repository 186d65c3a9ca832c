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
    """σ′(x) · max(R, 0)."""

    def backward(layer: Layer, arriving: jax.Array) -> tuple[jax.Array, ...]:
        return layer.transpose(jnp.maximum(arriving, 0))

    return Rule("guided", ("activation",), backward)


def deconvolved() -> Rule:
    """max(R, 0) for every activation."""
    return Rule("deconvolved", ("activation",), lambda _, arriving: jnp.maximum(arriving, 0))


_KNOWN = tuple((kind, derivative()) for kind in KINDS if kind != "unknown")
GUIDED = Composite("guided_backprop", (*_KNOWN, ("activation", guided())), derivative())
DECONVOLVED = Composite("deconvnet", (*_KNOWN, ("activation", deconvolved())), derivative())
