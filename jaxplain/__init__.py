"""Interpretability for JAX as pure function transforms: if you can `jax.grad` it, you can explain it."""

import importlib as _importlib
import typing as _typing
from importlib.metadata import version as _version

from jaxplain import metrics as metrics
from jaxplain import nnx as nnx
from jaxplain import plot as plot
from jaxplain import prototypes as prototypes
from jaxplain import rules as rules
from jaxplain._batch import batched as batched
from jaxplain._cam_layer import Layout as Layout
from jaxplain._errors import DataError as DataError
from jaxplain._errors import InputError as InputError
from jaxplain._errors import JaxplainError as JaxplainError
from jaxplain._errors import LabelError as LabelError
from jaxplain._errors import LayerError as LayerError
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
from jaxplain._explainer import LayerName as LayerName
from jaxplain._explainer import with_info as with_info
from jaxplain._groups import patches as patches
from jaxplain._inspection import Ledger as Ledger
from jaxplain._inspection import layers as layers
from jaxplain._inspection import ledger as ledger
from jaxplain._inspection import plan as plan
from jaxplain._layers.table import NodeRow as NodeRow
from jaxplain._layers.table import Nodes as Nodes
from jaxplain._references import References as References
from jaxplain._references import references as references
from jaxplain._scores import check as check
from jaxplain._scores import logit as logit
from jaxplain._split import Split as Split
from jaxplain._split import split as split
from jaxplain.methods._cam import ablation_cam as ablation_cam
from jaxplain.methods._cam import cam as cam
from jaxplain.methods._cam import eigen_cam as eigen_cam
from jaxplain.methods._cam import grad_cam as grad_cam
from jaxplain.methods._cam import grad_cam_plus_plus as grad_cam_plus_plus
from jaxplain.methods._cam import guided_grad_cam as guided_grad_cam
from jaxplain.methods._cam import hires_cam as hires_cam
from jaxplain.methods._cam import layer_cam as layer_cam
from jaxplain.methods._cam import score_cam as score_cam
from jaxplain.methods._cam import xgrad_cam as xgrad_cam
from jaxplain.methods._conductance import conductance as conductance
from jaxplain.methods._deeplift import deeplift as deeplift
from jaxplain.methods._gradient import gradient as gradient
from jaxplain.methods._gradient import input_x_gradient as input_x_gradient
from jaxplain.methods._gradient import saliency as saliency
from jaxplain.methods._gradient import sensitivity as sensitivity
from jaxplain.methods._noise import smoothgrad as smoothgrad
from jaxplain.methods._noise import smoothgrad_squared as smoothgrad_squared
from jaxplain.methods._noise import vargrad as vargrad
from jaxplain.methods._path import expected_gradients as expected_gradients
from jaxplain.methods._path import integrated_gradients as integrated_gradients
from jaxplain.methods._perturbation import ablation as ablation
from jaxplain.methods._perturbation import occlusion as occlusion
from jaxplain.methods._perturbation import shapley_sampling as shapley_sampling
from jaxplain.methods._propagation import deconvnet as deconvnet
from jaxplain.methods._propagation import deep_taylor as deep_taylor
from jaxplain.methods._propagation import excitation_backprop as excitation_backprop
from jaxplain.methods._propagation import guided_backprop as guided_backprop
from jaxplain.methods._propagation import lrp as lrp
from jaxplain.methods._taylor import line_search as line_search
from jaxplain.methods._taylor import scaled_input as scaled_input
from jaxplain.methods._taylor import taylor as taylor
from jaxplain.prototypes._activation_maximization import History as History
from jaxplain.prototypes._activation_maximization import Prototype as Prototype
from jaxplain.prototypes._activation_maximization import activation_maximization as activation_maximization
from jaxplain.rules import composites as composites

__version__ = _version("jaxplain")

if _typing.TYPE_CHECKING:
    from jaxplain import datasets as datasets
    from jaxplain import experts as experts
    from jaxplain import zoo as zoo
else:
    _ON_FIRST_USE = ("datasets", "experts", "zoo")  # because they import Flax and Optax

    def __getattr__(name: str) -> object:
        if name in _ON_FIRST_USE:
            return _importlib.import_module(f"jaxplain.{name}")
        raise AttributeError(f"module 'jaxplain' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ON_FIRST_USE})
