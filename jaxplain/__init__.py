"""Interpretability for JAX as pure function transforms: if you can `jax.grad` it, you can explain it."""

from importlib.metadata import version as _version

from jaxplain import datasets as datasets
from jaxplain import nnx as nnx
from jaxplain import plot as plot
from jaxplain import rules as rules
from jaxplain import zoo as zoo
from jaxplain._errors import DataError as DataError
from jaxplain._errors import InputError as InputError
from jaxplain._errors import JaxplainError as JaxplainError
from jaxplain._errors import LabelError as LabelError
from jaxplain._errors import MissingKeyError as MissingKeyError
from jaxplain._errors import ModelModeError as ModelModeError
from jaxplain._errors import NonFiniteError as NonFiniteError
from jaxplain._errors import ScoreError as ScoreError
from jaxplain._errors import SettingError as SettingError
from jaxplain._errors import StructureError as StructureError
from jaxplain._errors import TransformError as TransformError
from jaxplain._errors import UnexplainedChangeError as UnexplainedChangeError
from jaxplain._errors import UnknownNodeError as UnknownNodeError
from jaxplain._explainer import Explainer as Explainer
from jaxplain._explainer import Info as Info
from jaxplain._explainer import with_info as with_info
from jaxplain._references import references as references
from jaxplain.batch import batched as batched
from jaxplain.methods.deeplift import deeplift as deeplift
from jaxplain.methods.gradient import gradient as gradient
from jaxplain.methods.gradient import input_x_gradient as input_x_gradient
from jaxplain.methods.gradient import saliency as saliency
from jaxplain.methods.gradient import sensitivity as sensitivity
from jaxplain.methods.inspection import Ledger as Ledger
from jaxplain.methods.inspection import layers as layers
from jaxplain.methods.inspection import ledger as ledger
from jaxplain.methods.inspection import plan as plan
from jaxplain.methods.noise import smoothgrad as smoothgrad
from jaxplain.methods.noise import smoothgrad_squared as smoothgrad_squared
from jaxplain.methods.noise import vargrad as vargrad
from jaxplain.methods.path import expected_gradients as expected_gradients
from jaxplain.methods.path import integrated_gradients as integrated_gradients
from jaxplain.methods.propagation import deconvnet as deconvnet
from jaxplain.methods.propagation import deep_taylor as deep_taylor
from jaxplain.methods.propagation import excitation_backprop as excitation_backprop
from jaxplain.methods.propagation import guided_backprop as guided_backprop
from jaxplain.methods.propagation import lrp as lrp
from jaxplain.methods.taylor import line_search as line_search
from jaxplain.methods.taylor import scaled_input as scaled_input
from jaxplain.methods.taylor import taylor as taylor
from jaxplain.rules import composites as composites
from jaxplain.scores import check as check
from jaxplain.scores import logit as logit

__version__ = _version("jaxplain")
