"""The methods of the tour, each as a user would set it up for digits. The leaderboard measures the same ones."""

from typing import NamedTuple

import jax

import jaxplain as jx
from jaxplain._types import Score
from tour.spec import BACKGROUND, SCORE, Given, Spec, spec


class Row(NamedTuple):
    name: str
    method: Spec  # of `score` and `background` (training examples, for methods that need references)
    needs_maps: bool = False  # only for networks that have feature maps


_GRADIENT, _PATCHES = spec(jx.gradient, SCORE), spec(jx.patches, 4, 4)
_REFERENCES = spec(jx.references, BACKGROUND)

# A new method adds one line here.
ROWS = (
    Row("gradient", _GRADIENT),
    Row("saliency", spec(jx.saliency, SCORE)),
    Row("sensitivity", spec(jx.sensitivity, SCORE)),
    Row("input × gradient", spec(jx.input_x_gradient, SCORE)),
    Row("simple Taylor", spec(jx.taylor, SCORE, root=spec(jx.line_search))),
    Row("integrated gradients", spec(jx.integrated_gradients, SCORE)),
    Row("IG, error ≤ 1 %", spec(jx.integrated_gradients, SCORE, n_steps=20, tol=1e-2, max_steps=1000)),
    Row("expected gradients", spec(jx.expected_gradients, SCORE, references=_REFERENCES, n_samples=50)),
    Row("LRP ε⁺-flat", spec(jx.lrp, SCORE, rules=spec(jx.composites.epsilon_plus_flat))),
    Row("LRP εγ-box", spec(jx.lrp, SCORE, rules=spec(jx.composites.epsilon_gamma_box, 0.0, 1.0))),
    Row("deep Taylor", spec(jx.deep_taylor, SCORE, low=0.0, high=1.0)),
    Row("excitation backprop", spec(jx.excitation_backprop, SCORE)),
    Row("DeepLIFT Rescale", spec(jx.deeplift, SCORE)),
    Row("DeepLIFT RevealCancel", spec(jx.deeplift, SCORE, rule="reveal_cancel", fallback="rescale")),
    Row("DeepLIFT, 20 references", spec(jx.deeplift, SCORE, baseline=spec(jx.references, Given("background", 20)))),
    Row("Grad-CAM", spec(jx.grad_cam, SCORE), needs_maps=True),
    Row("Grad-CAM++", spec(jx.grad_cam_plus_plus, SCORE), needs_maps=True),
    Row("HiResCAM", spec(jx.hires_cam, SCORE, at="last conv:in"), needs_maps=True),
    Row("guided Grad-CAM", spec(jx.guided_grad_cam, SCORE), needs_maps=True),
    Row("occlusion", spec(jx.occlusion, SCORE, window=(4, 4), strides=2)),
    Row("ablation", spec(jx.ablation, SCORE, groups=_PATCHES, share=True)),
    Row("Shapley sampling", spec(jx.shapley_sampling, SCORE, groups=_PATCHES, share=True, n_samples=10)),
    Row("guided backprop", spec(jx.guided_backprop, SCORE)),
    Row("deconvolution", spec(jx.deconvnet, SCORE)),
    Row("SmoothGrad", spec(jx.smoothgrad, _GRADIENT)),
    Row("squared SmoothGrad", spec(jx.smoothgrad_squared, _GRADIENT)),
    Row("VarGrad", spec(jx.vargrad, _GRADIENT)),
)


def rows_for(score: Score, x: jax.typing.ArrayLike) -> tuple[Row, ...]:
    """The rows that apply to a score of images like `x` and a class."""
    has_maps = any(node.kind == "convolution" for node in jx.layers(score)(x, 0))
    return tuple(row for row in ROWS if has_maps or not row.needs_maps)
