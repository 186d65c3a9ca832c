"""Rules: how relevance, or a gradient, goes backwards through one node of a program. Pure functions; no method."""

from jaxplain.graph.patterns import Pattern as Pattern
from jaxplain.graph.patterns import scope as scope
from jaxplain.rules.backprop import derivative as derivative
from jaxplain.rules.lrp import alpha_beta as alpha_beta
from jaxplain.rules.lrp import epsilon as epsilon
from jaxplain.rules.lrp import flat as flat
from jaxplain.rules.lrp import gamma as gamma
from jaxplain.rules.lrp import gradient_x_input as gradient_x_input
from jaxplain.rules.lrp import log_softmax as log_softmax
from jaxplain.rules.lrp import norm as norm
from jaxplain.rules.lrp import pass_through as pass_through
from jaxplain.rules.lrp import proportional_pooling as proportional_pooling
from jaxplain.rules.lrp import signal as signal
from jaxplain.rules.lrp import uniform as uniform
from jaxplain.rules.lrp import winner as winner
from jaxplain.rules.lrp import wsquare as wsquare
from jaxplain.rules.lrp import zbox as zbox
from jaxplain.rules.lrp import zplus as zplus
from jaxplain.rules.rule import Rule as Rule
from jaxplain.rules.rule import distribute as distribute
from jaxplain.rules.rule import stabilise as stabilise
