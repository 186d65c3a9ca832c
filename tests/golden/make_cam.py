"""Golden arrays of the CAM family from Captum and pytorch-grad-cam.

`python tests/golden/make_cam.py` writes `cam/cam.npz, .json`.

Runs in an environment with numpy, torch, captum and grad-cam; neither the package nor its tests import this file. Three
seeded networks without ties (no max-pool, no dead channel), all 3x12x12 -> convolution, ReLU, average pool,
convolution, MAPS (6, 6, 8):

* `gap`: MAPS by ReLU, global mean, one dense layer without bias (the architecture of the first CAM);
* `flatten`: MAPS by ReLU, flattened, two dense layers with biases and a ReLU between;
* `signed`: the same with MAPS by tanh, so that channels, and their sums, have both signs.

Weights and inputs are float32 numbers, evaluated in float64. Arrays are stored in JAX's layouts.

pytorch-grad-cam rounds here and there to float32, adds epsilons that are not small beside squared gradients, up-samples
ScoreCAM's masks with aligned corners, and ablates by huge values. Of every method there is therefore

* `NAME`: the map (h, w) before ReLU, scaling and resizing, by the peer's own code with the steps in `PATCHES` replaced;
* `NAME_as_shipped`: the same of the untouched peer, where the two differ;
* `NAME_returned`: what the untouched peer returns, ReLU'd, scaled and resized to (12, 12), in float32.
"""

import contextlib
import datetime
import json
import pathlib
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
import pytorch_grad_cam as peer
import torch
from captum.attr import (
    GuidedGradCam,
    InternalInfluence,
    LayerConductance,
    LayerGradCam,
    LayerIntegratedGradients,
)
from make_captum import CLASSES, EXAMPLES, N_STEPS, distance, fill, float64_step_weights, provenance
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils import svd_on_activations
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "cam"
MADE = datetime.date(2026, 11, 25)
SEED = 20261125  # without a dead channel, which most seeds have in some example
IMAGE = (3, 12, 12)
CHANNELS = 8
MAPS = 4  # the layer's number in every network
CONDUCTANCE_STEPS = 5000


def trunk(maps: nn.Module) -> list[nn.Module]:
    first, last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, CHANNELS, 3, padding=1)
    return [first, nn.ReLU(), nn.AvgPool2d(2), last, maps]


def flattened(maps: nn.Module) -> nn.Sequential:
    head = [nn.Linear(CHANNELS * 6 * 6, 16), nn.ReLU(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*trunk(maps), nn.Flatten(), *head)


def gap() -> nn.Sequential:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES, bias=False)]
    return nn.Sequential(*trunk(nn.ReLU()), *head)


def flatten() -> nn.Sequential:
    return flattened(nn.ReLU())


def signed() -> nn.Sequential:
    return flattened(nn.Tanh())


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"gap": gap, "flatten": flatten, "signed": signed}


def stored_layout(name: str, value: np.ndarray) -> np.ndarray:
    """Kernels as JAX has them; the one after the flattening reads (h, w, c), where PyTorch flattens (c, h, w)."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 2 and value.shape[1] == CHANNELS * 6 * 6:
        return value.reshape(-1, CHANNELS, 36).swapaxes(1, 2).reshape(value.shape).T
    return value.T


def numbers(result: torch.Tensor) -> np.ndarray:
    """As a float64 array with the channels last."""
    result = result.detach().numpy()
    assert result.dtype == np.float64
    return np.moveaxis(result, 1, -1) if result.ndim == 4 else result


def captum(net: nn.Sequential, x: torch.Tensor, target: torch.Tensor, baseline: torch.Tensor) -> dict[str, np.ndarray]:
    layer = net[MAPS]
    out = {
        "captum_grad_cam": numbers(LayerGradCam(net, layer).attribute(x, target))[..., 0],
        "captum_grad_cam_relu": numbers(LayerGradCam(net, layer).attribute(x, target, relu_attributions=True))[..., 0],
        "guided_grad_cam": numbers(GuidedGradCam(net, layer).attribute(x, target, interpolate_mode="bilinear")),
    }
    zero = torch.zeros_like(baseline)
    with float64_step_weights():
        for name, start in {"zero": zero, "baseline": baseline}.items():
            layer_ig = LayerIntegratedGradients(net, layer).attribute(x, start, target, n_steps=N_STEPS)
            out[f"layer_ig_{name}"] = numbers(layer_ig)
        out["internal_influence"] = numbers(InternalInfluence(net, layer).attribute(x, zero, target, n_steps=N_STEPS))
    for name, start in {"zero": zero, "baseline": baseline}.items():
        out[f"conductance_{name}"] = conductance(net, x, target, start, CONDUCTANCE_STEPS)
    return out


def conductance(
    net: nn.Sequential,
    x: torch.Tensor,
    target: torch.Tensor,
    start: torch.Tensor,
    n_steps: int,
    method: str = "riemann_trapezoid",
) -> np.ndarray:
    return numbers(LayerConductance(net, net[MAPS]).attribute(x, start, target, n_steps=n_steps, method=method))


class ZeroAblation(AblationLayer):
    """Ablates by zero whatever the signs are."""

    def __call__(self, _x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.activations)):
            self.activations[i, self.indices[i]] = 0
        return self.activations


class Recorded(ClassifierOutputTarget):
    """Keeps the scores it is asked for."""

    def __init__(self, category: int) -> None:
        super().__init__(category)
        self.scores: list[float] = []

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        score = super().__call__(model_output)
        self.scores.append(score.item())
        return score


@contextlib.contextmanager
def without_epsilon(method: type, epsilon: float) -> Iterator[None]:
    """That constant of `get_cam_weights` is 0 inside this context."""
    code = method.get_cam_weights.__code__
    assert code.co_consts.count(epsilon) == 1
    code = code.replace(co_consts=tuple(0.0 if const == epsilon else const for const in code.co_consts))
    patched = types.FunctionType(code, method.get_cam_weights.__globals__)
    with mock.patch.object(method, "get_cam_weights", patched), np.errstate(invalid="ignore"):
        yield


class _Numpy:
    """numpy whose `float32` is `float64`."""

    float32 = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextlib.contextmanager
def float64_numpy(module: types.ModuleType) -> Iterator[None]:
    """What that module rounds by `np.float32(...)` stays float64 inside this context."""
    with mock.patch.object(module, "np", _Numpy()):
        yield


@contextlib.contextmanager
def float64_scores() -> Iterator[None]:
    """`torch.Tensor(scores)` is float64 inside this context."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def half_pixel_centers() -> Iterator[None]:
    def upsample(size: tuple[int, int]) -> nn.Module:
        return nn.Upsample(size=tuple(size), mode="bilinear", align_corners=False)

    with mock.patch.object(torch.nn, "UpsamplingBilinear2d", upsample):
        yield


PLAIN = {
    "grad_cam": peer.GradCAM,
    "hires_cam": peer.HiResCAM,
    "grad_cam_plus_plus": peer.GradCAMPlusPlus,
    "layer_cam": peer.LayerCAM,
    "xgrad_cam": peer.XGradCAM,
    "eigen_cam": peer.EigenCAM,
    "score_cam": peer.ScoreCAM,
    "ablation_cam": peer.AblationCAM,
}
PATCHES: dict[str, list[Callable[[], contextlib.AbstractContextManager]]] = {
    "grad_cam_plus_plus": [lambda: without_epsilon(peer.GradCAMPlusPlus, 1e-6)],
    "xgrad_cam": [lambda: without_epsilon(peer.XGradCAM, 1e-7)],
    "eigen_cam": [lambda: float64_numpy(svd_on_activations)],
    "score_cam": [lambda: without_epsilon(peer.ScoreCAM, 1e-8), float64_scores, half_pixel_centers],
    "ablation_cam": [lambda: float64_numpy(peer.ablation_cam)],
}

# Of each method: its formula as the peer has it, and what of the peer is not as in its paper. A activations, g
# gradients of the logit, over positions (i, j) of channel k.
METHODS = {
    "every method": "The peer then takes max(map, 0), subtracts the minimum, divides by 1e-7 + maximum, resizes with "
    "cv2 (bilinear, half-pixel centres; float32) and scales once more. NAME and NAME_as_shipped are from before all "
    "that.",
    "grad_cam": "sum_k mean_ij(g) A. Float64, nothing patched.",
    "hires_cam": "sum_k g A. Float64, nothing patched.",
    "grad_cam_plus_plus": "sum_k w_k A, w_k = sum_ij a max(g, 0), a = g^2 / (2 g^2 + g^3 sum_ij A + 1e-6), 0 where g "
    "= 0. Patched: the 1e-6, which is not small beside g^2. The paper's gradient is that of exp(logit): the same map "
    "times exp(logit), dropped by the peer (g^2 and g^3 stand for its second and third derivatives, as where the "
    "network is piecewise linear).",
    "layer_cam": "sum_k max(g, 0) A. Float64, nothing patched.",
    "xgrad_cam": "sum_k w_k A, w_k = sum_ij g A / (sum_ij A + 1e-7). Patched: the 1e-7, which has no sign, so that it "
    "can bring a negative sum nearer to 0.",
    "eigen_cam": "(A - mean_ij A) v, positions by channels, v its first right singular vector, as LAPACK signs it. "
    "The paper does not centre. Compare up to the sign. The target is not used. Patched: the result is rounded to "
    "float32.",
    "score_cam": "sum_k w_k A, w = softmax over the channels of one example of f(x * mask_k)[target], the logit; "
    "mask_k is A up-sampled, less its minimum, divided by its range + 1e-8. Patched: UpsamplingBilinear2d, which "
    "aligns corners (NAME: half-pixel centres), the 1e-8, and scores and softmax in float32. score_cam_scores are the "
    "logits f(x * mask_k)[target] (example, channel) of NAME, score_cam_scores_as_shipped those with aligned corners. "
    "The paper subtracts the score of a baseline, which the softmax does not see.",
    "ablation_cam": "sum_k w_k A, w_k = (S - S_k) / S, S_k with channel k ablated, and S with its sign, as in the "
    "paper (a negative logit turns the map around). The paper ablates by 0. So does the peer where the minimum of the "
    "layer is 0; else by that minimum - 1e7, taken again after every channel of a batch, the ablated ones included, "
    "so that channel k gets about -(k + 1) 1e7. Patched: ablation_layer=ZeroAblation(), and scores and weights in "
    "float64 (float32 as shipped). ablation_cam_scores is S.",
}
CALLS = {
    "captum_grad_cam": "LayerGradCam(net, maps).attribute(x, target): sum_k mean_ij(g) A",
    "captum_grad_cam_relu": "the same with relu_attributions=True",
    "guided_grad_cam": "GuidedGradCam(net, maps).attribute(x, target, interpolate_mode='bilinear'): guided "
    "backpropagation times the ReLU'd map, up-sampled with half-pixel centres",
    "layer_ig_*": f"LayerIntegratedGradients(net, maps).attribute(x, baseline, target, n_steps={N_STEPS}), "
    "gausslegendre: the straight path between the layer at the baseline and at x; quadrature weights in float64, as "
    "in make_captum.py",
    "internal_influence": f"InternalInfluence(net, maps).attribute(x, zeros, target, n_steps={N_STEPS}), "
    "gausslegendre: the mean of g over the path from 0 to x in input space, not multiplied by anything; quadrature "
    "weights in float64",
    "conductance_*": "LayerConductance(net, maps).attribute(x, baseline, target, method='riemann_trapezoid', "
    f"n_steps={CONDUCTANCE_STEPS}): no quadrature weights but sum_i g(a_i) (A(a_{{i+1}}) - A(a_i)) over n_steps + 1 "
    "nodes a. That is a left sum, of first order in 1 / n_steps, over evenly spaced nodes, ends included. Captum's "
    "default, 50 steps between Gauss-Legendre nodes, is the same sum, in which these nodes gain nothing and the "
    "path's ends, 0 to a_0 and a_50 to 1, are missing; how far it is from these arrays stands under "
    "conductance_distance.",
}


def one_cam(name: str, net: nn.Sequential, x: torch.Tensor, target: np.ndarray, **settings: Any):
    """The raw map, what is returned, and the scores that were asked for."""
    cam = PLAIN[name](net, [net[MAPS]], **settings)
    labels = [Recorded(int(label)) for label in target]
    raw = []

    def record(*args: Any) -> np.ndarray:
        raw.append(type(cam).get_cam_image(cam, *args))
        return raw[-1]

    with mock.patch.object(cam, "get_cam_image", record):
        returned = cam(x, labels)
    cam.activations_and_grads.release()
    return raw[0], returned, np.array([label.scores for label in labels])


def cams(net: nn.Sequential, x: torch.Tensor, target: np.ndarray) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name in PLAIN:
        shipped, out[f"{name}_returned"], shipped_scores = one_cam(name, net, x, target)
        assert np.isfinite(out[f"{name}_returned"]).all() and out[f"{name}_returned"].dtype == np.float32
        out[name] = shipped
        if name in PATCHES:
            settings = {"ablation_layer": ZeroAblation()} if name == "ablation_cam" else {}
            with contextlib.ExitStack() as stack:
                for patch in PATCHES[name]:
                    stack.enter_context(patch())
                out[name], _, scores = one_cam(name, net, x, target, **settings)
            out[f"{name}_as_shipped"] = shipped
        if name == "score_cam":
            out["score_cam_scores"], out["score_cam_scores_as_shipped"] = scores, shipped_scores
        if name == "ablation_cam":
            out["ablation_cam_scores"] = scores[:, 0]
        assert out[name].dtype == np.float64 and out[name].shape == (EXAMPLES, 6, 6), name
    return out


def make_one(number: int, name: str, about: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([SEED, number])
    net = NETWORKS[name]().eval()
    weights = fill(net, rng)
    net = net.double()
    x = rng.normal(size=(EXAMPLES, *IMAGE)).astype(np.float32)
    baseline = rng.normal(0, 0.5, (1, *IMAGE)).astype(np.float32)
    given, start = torch.from_numpy(x).double(), torch.from_numpy(baseline).double()
    logits = numbers(net(given))
    target = np.append(logits[:-1].argmax(1), logits[-1].argmin())  # the last one's logit is negative
    label = torch.from_numpy(target)
    assert (logits[range(EXAMPLES), target] < 0).tolist() == [False, False, False, True]

    maps = net[: MAPS + 1](given)
    flat = maps.detach().reshape(EXAMPLES, CHANNELS, -1)
    assert (flat.max(-1).values - flat.min(-1).values > 0.1).all(), "a dead channel"
    assert (flat.min() < 0) == (name == "signed")
    out = {"logits": logits, "maps": numbers(maps)}
    out |= captum(net, given, label, start) | cams(net, given, target)
    assert distance(out["grad_cam"], out["captum_grad_cam"]) < 1e-14

    about["networks"][name] = [str(layer) for layer in net]
    about["as_shipped_distance"][name] = {key: distance(out[f"{key}_as_shipped"], out[key]) for key in PATCHES}
    from_zero = given, label, 0 * start
    about["conductance_distance"][name] = {
        "half_as_many_steps": distance(conductance(net, *from_zero, CONDUCTANCE_STEPS // 2), out["conductance_zero"]),
        "captum_default": distance(conductance(net, *from_zero, 50, "gausslegendre"), out["conductance_zero"]),
    }
    arrays = {f"weights/{key}": stored_layout(key, value) for key, value in weights.items()}
    arrays |= {"x": np.moveaxis(x, 1, -1), "target": target, "baseline": np.moveaxis(baseline, 1, -1)[0]}
    return arrays | out


def make() -> None:
    about: dict = provenance(__file__, MADE, [SEED, "the number of the network, from 0"], nn.Sequential())
    del about["network"]
    about["peer"] = "captum, pytorch-grad-cam"
    about["versions"]["grad-cam"] = version("grad-cam")
    about |= {
        "layout": "NHWC images and layers, HWIO kernels, (in, out) matrices; maps (example, h, w)",
        "calls": CALLS
        | {
            name: f"{cls.__name__}(net, [maps])(x, [ClassifierOutputTarget(label), ...])" for name, cls in PLAIN.items()
        },
        "methods": METHODS,
        "tolerance": {
            "float64": 1e-9,
            "float64_reason": "relative L2; the same formula in another order of summation, with divisions by sums "
            "that cancel (xgrad_cam, grad_cam_plus_plus) and a singular vector (eigen_cam, up to its sign)",
            "returned": 1e-4,
            "returned_reason": "relative L2; float32 and 1e-7 + maximum, twice",
            "conductance": 3e-3,
            "conductance_reason": "relative L2, for a quadrature of 500 steps: it converges only as 1 / n_steps where "
            "the path has kinks; these arrays themselves are good to some 2e-4",
        },
        "networks": {},
        "as_shipped_distance": {},
        "conductance_distance": {},
    }
    arrays = {}
    for number, name in enumerate(NETWORKS):
        arrays |= {f"{name}/{key}": value for key, value in make_one(number, name, about).items()}
    np.savez_compressed(FOLDER / "cam.npz", **arrays)
    (FOLDER / "cam.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps({key: about[key] for key in ("as_shipped_distance", "conductance_distance")}, indent=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    make()
