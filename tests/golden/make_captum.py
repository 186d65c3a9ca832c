"""Golden arrays of the gradient family from Captum: `python tests/golden/make_captum.py` writes `captum/*.npz, *.json`.

Runs in an environment with numpy, torch and captum; neither the package nor its tests import this file. Three seeded
networks without ties (no max-pool, random inputs), so that gradients are unique and peers must agree:

* `mlp`: 20-32-24-5, ReLU, biases;
* `cnn_avgpool`: two convolutions with biases, ReLU, 2x2 average pooling, one dense layer;
* `conv_smooth`: strided convolution, GELU, depthwise convolution, batch-norm in evaluation mode, tanh, strided
  convolution, average pooling, one dense layer.

Weights, inputs and baselines are float32 numbers, so the float64 runs explain the very same networks.

Integrated gradients is stored three times. Captum 0.9 multiplies the gradients by `torch.tensor(step_sizes).float()`:
its quadrature weights carry float32 rounding (3e-8) whatever the dtype of the inputs, which moves its float64 maps by
1e-9. `ig_*_float64` is Captum's own code with that one cast widened (`float64_step_weights` below: nothing else
changes); `ig_*_float64_as_shipped` is Captum untouched; `ig_*_float32` is Captum untouched on float32 inputs.
"""

import contextlib
import datetime
import json
import pathlib
import platform
from unittest import mock

import captum
import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "captum"
MADE = datetime.date(2026, 11, 23)
SEED = 20261123
EXAMPLES = 4
CLASSES = 5
N_STEPS = 50


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, CLASSES))


def cnn_avgpool() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 10, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(10 * 2 * 2, CLASSES),
    )


def conv_smooth() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


NETWORKS = {"mlp": (mlp, (20,)), "cnn_avgpool": (cnn_avgpool, (1, 12, 12)), "conv_smooth": (conv_smooth, (3, 12, 12))}


def fill(net: nn.Sequential, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Seeded weights: He-scaled kernels, biases of a size that matters, batch statistics away from (0, 1)."""
    arrays = {}
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(tensor.shape)
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 2.0, shape)
        elif name.endswith("weight") and len(shape) == 1:  # batch-norm's scale
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            value = rng.normal(0, 0.3, shape)
        arrays[name] = value.astype(np.float32)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()}, strict=False)
    return arrays


@contextlib.contextmanager
def float64_step_weights():
    """Captum's `torch.tensor(step_sizes).float()` gives float64 inside this context: full weights, same algorithm."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def integrated(net, x, target, baseline) -> np.ndarray:
    return IntegratedGradients(net).attribute(x, baseline, target, n_steps=N_STEPS).detach().numpy()


def attributions(
    net: nn.Module, x: torch.Tensor, target: torch.Tensor, baseline: torch.Tensor
) -> dict[str, np.ndarray]:
    """Everything that is stored for one network in the precision of `x`."""
    precision = str(x.dtype).removeprefix("torch.")
    out = {
        f"logits_{precision}": net(x).detach().numpy(),
        f"gradient_{precision}": Saliency(net).attribute(x, target, abs=False).detach().numpy(),
        f"input_x_gradient_{precision}": InputXGradient(net).attribute(x, target).detach().numpy(),
    }
    for name, start in {"ig_zero": torch.zeros_like(baseline), "ig_baseline": baseline}.items():
        if precision == "float32":
            out[f"{name}_float32"] = integrated(net, x, target, start)
            continue
        out[f"{name}_float64_as_shipped"] = integrated(net, x, target, start)
        with float64_step_weights():
            out[f"{name}_float64"] = integrated(net, x, target, start)
    assert all(value.dtype == np.dtype(precision) for value in out.values())
    return out


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def provenance(script: str, made: datetime.date, seed: list[int], net: nn.Sequential) -> dict:
    """Where stored arrays come from, whatever they are."""
    return {
        "peer": "captum",
        "versions": {
            "captum": captum.__version__,
            "torch": torch.__version__.split("+")[0],
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "made_by": f"tests/golden/{pathlib.Path(script).name}",
        "date": made.isoformat(),
        "seed": seed,
        "network": [str(layer) for layer in net],
        "layout": "NCHW images, OIHW kernels, (out, in) matrices",
    }


def make(number: int, name: str) -> None:
    build, shape = NETWORKS[name]
    rng = np.random.default_rng([SEED, number])
    net = build().eval()
    weights = fill(net, rng)
    x = rng.normal(size=(EXAMPLES, *shape)).astype(np.float32)
    baseline = rng.normal(0, 0.5, (1, *shape)).astype(np.float32)
    target = np.arange(EXAMPLES) % CLASSES
    out: dict[str, np.ndarray] = {}
    for dtype in (torch.float32, torch.float64):
        net = net.to(dtype)
        given = (torch.from_numpy(x).to(dtype), torch.from_numpy(target), torch.from_numpy(baseline).to(dtype))
        out |= attributions(net, *given)
    arrays = {f"weights/{key}": value for key, value in weights.items()}
    arrays |= {"x": x, "target": target, "baseline": baseline[0]} | out
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)

    methods = ("gradient", "input_x_gradient", "ig_zero", "ig_baseline")
    about = provenance(__file__, MADE, [SEED, number], net) | {
        "calls": {
            "gradient": "Saliency(net).attribute(x, target, abs=False)",
            "input_x_gradient": "InputXGradient(net).attribute(x, target)",
            "ig_zero": f"IntegratedGradients(net).attribute(x, zeros, target, n_steps={N_STEPS}), method "
            f"'gausslegendre'",
            "ig_baseline": f"IntegratedGradients(net).attribute(x, baseline, target, n_steps={N_STEPS})",
        },
        "float64_step_weights": "ig_*_float64: Captum's code with its quadrature weights in float64, where Captum "
        "casts them to float32 for inputs of any dtype. ig_*_float64_as_shipped: Captum untouched.",
        "tolerance": {
            "float64": 1e-10,
            "float64_reason": "relative L2; same formula in another order of summation, some 1e-15",
            "float32": 2.0,
            "float32_reason": "relative L2 to the peer's float64 result, in multiples of the peer's own such distance",
        },
        "peer_distances": {
            method: {"float32_to_float64": distance(out[f"{method}_float32"], out[f"{method}_float64"])}
            for method in methods
        },
    }
    for method in ("ig_zero", "ig_baseline"):
        shipped = distance(out[f"{method}_float64_as_shipped"], out[f"{method}_float64"])
        about["peer_distances"][method]["as_shipped_to_float64"] = shipped
    (FOLDER / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
    print(name, json.dumps(about["peer_distances"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for i, network in enumerate(NETWORKS):
        make(i, network)
