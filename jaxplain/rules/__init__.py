"""Rules: pure functions that carry relevance, or a gradient, backwards through one node of a program."""

from jaxplain._analysis.nodes import KINDS
from jaxplain._analysis.patterns import Pattern, scope
from jaxplain._engine.node_view import Layer, Weights
from jaxplain.rules._backprop import derivative
from jaxplain.rules._lrp import (
    alpha_beta,
    epsilon,
    flat,
    gamma,
    gradient_x_input,
    log_softmax,
    norm,
    pass_through,
    proportional_pooling,
    signal_takes_all,
    uniform,
    winner_takes_all,
    wsquare,
    zbox,
    zplus,
)
from jaxplain.rules._rule import Relevance, Rule, distribute, stabilize, times

# fmt: off
__all__ = [
    "KINDS", "Layer", "Pattern", "Relevance", "Rule", "Weights", "alpha_beta", "derivative", "distribute",
    "epsilon", "flat", "gamma", "gradient_x_input", "log_softmax", "norm", "pass_through", "proportional_pooling",
    "scope", "signal_takes_all", "stabilize", "times", "uniform", "winner_takes_all", "wsquare", "zbox", "zplus",
]
# fmt: on
