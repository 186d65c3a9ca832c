"""Rules: how relevance, or a gradient, goes backwards through one node of a program. Pure functions; no method."""

from jaxplain._analysis.nodes import KINDS as KINDS
from jaxplain._analysis.patterns import Pattern as Pattern
from jaxplain._analysis.patterns import scope as scope
from jaxplain._engine.node_view import Layer as Layer
from jaxplain._engine.node_view import Weights as Weights
from jaxplain.rules._backprop import derivative as derivative
from jaxplain.rules._lrp import alpha_beta as alpha_beta
from jaxplain.rules._lrp import epsilon as epsilon
from jaxplain.rules._lrp import flat as flat
from jaxplain.rules._lrp import gamma as gamma
from jaxplain.rules._lrp import gradient_x_input as gradient_x_input
from jaxplain.rules._lrp import log_softmax as log_softmax
from jaxplain.rules._lrp import norm as norm
from jaxplain.rules._lrp import pass_through as pass_through
from jaxplain.rules._lrp import proportional_pooling as proportional_pooling
from jaxplain.rules._lrp import signal_takes_all as signal_takes_all
from jaxplain.rules._lrp import uniform as uniform
from jaxplain.rules._lrp import winner_takes_all as winner_takes_all
from jaxplain.rules._lrp import wsquare as wsquare
from jaxplain.rules._lrp import zbox as zbox
from jaxplain.rules._lrp import zplus as zplus
from jaxplain.rules._rule import Relevance as Relevance
from jaxplain.rules._rule import Rule as Rule
from jaxplain.rules._rule import distribute as distribute
from jaxplain.rules._rule import stabilize as stabilize
from jaxplain.rules._rule import times as times
