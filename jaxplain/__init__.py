"""Interpretability for JAX as pure function transforms: if you can `jax.grad` it, you can explain it."""

import importlib as _importlib
import typing as _typing
from importlib.metadata import version as _version

from jaxplain import metrics, nnx, plot, prototypes, rules
from jaxplain._batch import batched
from jaxplain._cam_layer import Layout
from jaxplain._errors import (
    DataError,
    InputError,
    JaxplainError,
    JaxplainWarning,
    LabelError,
    LayerError,
    MissingKeyError,
    ModelModeError,
    NonFiniteError,
    ScoreError,
    SettingError,
    StructureError,
    TransformError,
    UnexplainedChangeError,
    UnknownNodeError,
)
from jaxplain._explainer import Explainer, Info, LayerName, with_info
from jaxplain._groups import patches
from jaxplain._inspection import Ledger, layers, ledger, plan
from jaxplain._layers.table import NodeRow, Nodes
from jaxplain._references import References, references
from jaxplain._scores import check, logit
from jaxplain._split import Split, split
from jaxplain.methods._cam import (
    ablation_cam,
    cam,
    eigen_cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    score_cam,
    xgrad_cam,
)
from jaxplain.methods._conductance import conductance
from jaxplain.methods._deeplift import deeplift
from jaxplain.methods._gradient import gradient, input_x_gradient, saliency, sensitivity
from jaxplain.methods._noise import smoothgrad, smoothgrad_squared, vargrad
from jaxplain.methods._path import expected_gradients, integrated_gradients
from jaxplain.methods._perturbation import ablation, occlusion, shapley_sampling
from jaxplain.methods._propagation import deconvnet, deep_taylor, excitation_backprop, guided_backprop, lrp
from jaxplain.methods._taylor import line_search, scaled_input, taylor
from jaxplain.prototypes._activation_maximization import History, Prototype, activation_maximization
from jaxplain.rules import composites

# fmt: off
__all__ = [
    "DataError", "Explainer", "History", "Info", "InputError", "JaxplainError", "JaxplainWarning", "LabelError",
    "LayerError", "LayerName", "Layout", "Ledger", "MissingKeyError", "ModelModeError", "NodeRow", "Nodes",
    "NonFiniteError", "Prototype", "References", "ScoreError", "SettingError", "Split", "StructureError",
    "TransformError", "UnexplainedChangeError", "UnknownNodeError", "ablation", "ablation_cam",
    "activation_maximization", "batched", "cam", "check", "composites", "conductance", "datasets", "deconvnet",
    "deep_taylor", "deeplift", "eigen_cam", "excitation_backprop", "expected_gradients", "experts", "grad_cam",
    "grad_cam_plus_plus", "gradient", "guided_backprop", "guided_grad_cam", "hires_cam", "input_x_gradient",
    "integrated_gradients", "layer_cam", "layers", "ledger", "line_search", "logit", "lrp", "metrics", "nnx",
    "occlusion", "patches", "plan", "plot", "prototypes", "references", "rules", "saliency", "scaled_input",
    "score_cam", "sensitivity", "shapley_sampling", "smoothgrad", "smoothgrad_squared", "split", "taylor", "vargrad",
    "with_info", "xgrad_cam", "zoo",
]
# fmt: on

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
