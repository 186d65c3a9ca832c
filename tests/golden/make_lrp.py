"""Golden arrays of LRP from Zennit and LXT: `python tests/golden/make_lrp.py` writes `lrp/lrp.npz` and `lrp/lrp.json`.

Runs in an environment with numpy, torch, zennit and lxt (whose explicit interface needs transformers 4); neither the
package nor its tests import this file. Zennit explains three seeded networks without max-pool under its six composites:

* `mlp`: 24-20-16-5, ReLU, biases;
* `residual`: stem convolution (stride 2), one residual block, batch-norm after every convolution, ReLU, average pool,
  dense;
* `separable`: convolution (stride 2, no padding), two depthwise-separable blocks, batch-norm, ReLU6 (a twentieth of the
  units saturated), average pool, global average pool, dense.

`attention` is one pre-norm encoder block (two heads, GELU) explained by LXT's explicit functions, once with every
epsilon at 1e-16, where its stabiliser without a sign does not matter, and once with its defaults.

Relevance starts as the target logit. Batch-norm is folded into the convolution before it (`folded` below) because
Zennit does so with its canonizers; the arrays hold its parameters unfolded. Weights and inputs are float32 numbers, so
both precisions explain the very same networks. Of the float32 results only the distance to float64 is stored.
"""

import copy
import datetime
import json
import pathlib
import platform
from collections.abc import Callable
from importlib.metadata import version

import lxt.explicit.functional as lf
import lxt.explicit.rules as lr
import numpy as np
import torch
from torch import nn
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
)
from zennit.core import Composite
from zennit.layer import Sum

FOLDER = pathlib.Path(__file__).parent / "lrp"
MADE = datetime.date(2026, 11, 24)
SEED = 20261124
TARGET = np.array([0, 2, 4])
CLASSES = 5
IMAGE = (3, 12, 12)
LOW, HIGH = -1.0, 1.0
TOKENS, WIDTH, HEADS, HIDDEN = 5, 8, 2, 16
NORM_EPS = {"residual": 1e-5, "separable": 1e-3, "attention": 1e-5}

COMPOSITES: dict[str, Callable[[], Composite]] = {
    "epsilon_plus": EpsilonPlus,
    "epsilon_plus_flat": EpsilonPlusFlat,
    "epsilon_alpha2_beta1": EpsilonAlpha2Beta1,
    "epsilon_alpha2_beta1_flat": EpsilonAlpha2Beta1Flat,
    "epsilon_gamma_box": lambda: EpsilonGammaBox(low=LOW, high=HIGH),
    "excitation_backprop": ExcitationBackprop,
}


class Residual(nn.Module):
    """Zennit's Sum over the stacked branches, so that the addition gets a rule; a plain `+` would copy relevance."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.sum = Sum(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sum(torch.stack([self.body(x), x], dim=-1))


class Weights:
    """Draws layers for torch, in float64 with batch-norm folded, and keeps what it drew in JAX's layouts, unfolded."""

    def __init__(self, rng: np.random.Generator, norm_eps: float = 0.0) -> None:
        self.rng, self.norm_eps = rng, norm_eps
        self.arrays: dict[str, np.ndarray] = {}

    def keep(self, name: str, value: np.ndarray) -> np.ndarray:
        """That array as float32 numbers in float64, kept under that name."""
        self.arrays[name] = value.astype(np.float32)
        return self.arrays[name].astype(np.float64)

    def kernel(self, name: str, *shape: int) -> np.ndarray:
        return self.keep(f"{name}.kernel", self.rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))

    def bias(self, name: str, n: int) -> np.ndarray:
        return self.keep(f"{name}.bias", self.rng.normal(0, 0.3, n))

    def dense(self, name: str, n_in: int, n_out: int, channels: int | None = None) -> nn.Linear:
        """With `channels`, its input is a flattened image: NHWC in JAX, NCHW in torch."""
        kernel = self.kernel(name, n_in, n_out)
        if channels is not None:
            kernel = kernel.reshape(-1, channels, n_out).swapaxes(0, 1).reshape(n_in, n_out)
        return loaded(nn.Linear(n_in, n_out), kernel.T, self.bias(name, n_out))

    def conv(
        self, name: str, n_in: int, n_out: int, size: int = 3, *, gain: float = 1.0, bias: bool = True, **settings: int
    ) -> nn.Conv2d:
        """A convolution with the batch-norm after it folded in; `gain` multiplies the batch-norm's scale."""
        kernel = self.kernel(name, size, size, n_in // settings.get("groups", 1), n_out)
        shift = self.bias(name, n_out) if bias else np.zeros(n_out)
        kernel, shift = self.folded(name, kernel, shift, gain)
        return loaded(nn.Conv2d(n_in, n_out, size, **settings), kernel.transpose(3, 2, 0, 1), shift)

    def folded(self, name: str, kernel: np.ndarray, bias: np.ndarray, gain: float) -> tuple[np.ndarray, np.ndarray]:
        n, rng = len(bias), self.rng
        gamma = self.keep(f"{name}.gamma", gain * rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n, p=[0.2, 0.8]))
        beta = self.keep(f"{name}.beta", rng.normal(0, 0.3, n))
        mean = self.keep(f"{name}.mean", rng.normal(0, 0.3, n))
        var = self.keep(f"{name}.var", rng.uniform(0.5, 2.0, n))
        scale = gamma / np.sqrt(var + self.norm_eps)
        return kernel * scale, (bias - mean) * scale + beta


def loaded(layer: nn.Module, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    layer = layer.double()
    layer.load_state_dict({"weight": torch.tensor(weight.copy()), "bias": torch.tensor(bias)})
    return layer


def mlp(w: Weights) -> nn.Sequential:
    return nn.Sequential(w.dense("1", 24, 20), nn.ReLU(), w.dense("2", 20, 16), nn.ReLU(), w.dense("3", 16, CLASSES))


def residual(w: Weights) -> nn.Sequential:
    return nn.Sequential(
        w.conv("stem", 3, 6, stride=2, padding=1),
        nn.ReLU(),
        Residual(w.conv("body1", 6, 6, padding=1), nn.ReLU(), w.conv("body2", 6, 6, padding=1)),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        w.dense("head", 3 * 3 * 6, CLASSES, channels=6),
    )


def separable(w: Weights) -> nn.Sequential:
    return nn.Sequential(
        w.conv("stem", 3, 8, stride=2, bias=False, gain=5),
        nn.ReLU6(),
        w.conv("depthwise1", 8, 8, padding=1, groups=8, bias=False, gain=2),
        nn.ReLU6(),
        w.conv("pointwise1", 8, 10, 1, bias=False, gain=2),
        nn.ReLU6(),
        w.conv("depthwise2", 10, 10, padding=1, groups=10, bias=False, gain=2),
        nn.ReLU6(),
        w.conv("pointwise2", 10, 12, 1, bias=False, gain=2),
        nn.ReLU6(),
        nn.AvgPool2d(2, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        w.dense("head", 12, CLASSES),
    )


NETWORKS = {"mlp": (mlp, (24,)), "residual": (residual, IMAGE), "separable": (separable, IMAGE)}


def start(logits: torch.Tensor) -> torch.Tensor:
    """The target logit of every example, zero elsewhere."""
    return logits.detach() * nn.functional.one_hot(torch.tensor(TARGET), CLASSES)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def saturated(net: nn.Sequential, x: torch.Tensor) -> float:
    """The part of the ReLU6 units at 6. There Pass keeps relevance; the gradient, in ExcitationBackprop, drops it."""
    units = []
    for layer in net:
        x = layer(x)
        if isinstance(layer, nn.ReLU6):
            units.append(x.detach().ravel())
    return (torch.cat(units) == 6).double().mean().item()


def zennit(net: nn.Sequential, x: torch.Tensor, composite: Composite) -> tuple[np.ndarray, np.ndarray]:
    """Logits and the relevance of the input."""
    x = x.clone().requires_grad_()
    with composite.context(net) as hooked:
        logits = hooked(x)
        (relevance,) = torch.autograd.grad(logits, x, start(logits))
    return logits.detach().numpy(), channels_last(relevance.numpy())


def make_zennit(number: int, name: str, about: dict) -> dict[str, np.ndarray]:
    build, shape = NETWORKS[name]
    rng = np.random.default_rng([SEED, number])
    weights = Weights(rng, NORM_EPS.get(name, 0.0))
    net = build(weights).eval()
    x = rng.uniform(LOW, HIGH, (len(TARGET), *shape)).astype(np.float32)
    x64 = torch.from_numpy(x).double()
    out = {f"weights/{key}": value for key, value in weights.arrays.items()}
    out |= {"x": channels_last(x), "target": TARGET, "logits": net(x64).detach().numpy()}
    about["networks"][name] = [str(layer) for layer in net]
    if name in NORM_EPS:
        out["norm_eps"] = np.float64(NORM_EPS[name])
    if name == "separable":
        about["relu6_saturated"] = saturated(net, x64)
        assert 0.02 < about["relu6_saturated"] < 0.1
    about["float32_distance"][name] = distances = {}
    for composite, make in COMPOSITES.items():
        logits, out[composite] = zennit(net, x64, make())
        assert np.array_equal(logits, out["logits"])
        _, single = zennit(copy.deepcopy(net).float(), torch.from_numpy(x), make())
        assert single.dtype == np.float32 and out[composite].dtype == np.float64
        out[f"{composite}_float32_distance"] = np.float64(distance(single, out[composite]))
        distances[composite] = float(out[f"{composite}_float32_distance"])
    return out


def encoder(w: dict[str, torch.Tensor], x: torch.Tensor, epsilon: float | None) -> torch.Tensor:
    """The block in LXT's explicit functions. Their own epsilons: linear, mean and norm 1e-6, add and matmul 1e-8."""
    eps = {} if epsilon is None else {"epsilon": epsilon}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return lf.linear_epsilon(x, w[f"{name}.kernel"].T, w[f"{name}.bias"], **eps)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        given = (x, w[f"{name}.gamma"], w[f"{name}.beta"], NORM_EPS["attention"])
        # `lf.layer_norm` does not hand an epsilon on; what it calls takes one.
        return lf.layer_norm(*given) if epsilon is None else lf.layer_norm_grad_fn.apply(*given, epsilon)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS).transpose(1, 2)

    h = norm(x, "norm1")
    q, k, v = (heads(linear(h, name)) for name in "qkv")
    scores = lf.mul2(lf.matmul(q, k.transpose(-1, -2), **eps), (WIDTH // HEADS) ** -0.5)
    mixed = lf.matmul(lf.softmax(scores, -1), v, **eps)
    x = lf.add2(x, linear(mixed.transpose(1, 2).reshape(x.shape), "out"), **eps)
    h = lr.identity(nn.functional.gelu, linear(norm(x, "norm2"), "up"))
    x = lf.add2(x, linear(h, "down"), **eps)
    return linear(lf.mean(x, 1, False, **eps), "head")


def lxt(arrays: dict[str, np.ndarray], x: np.ndarray, dtype: torch.dtype, epsilon: float | None):
    """Logits and the relevance of the token embeddings."""
    w = {name: torch.from_numpy(value).to(dtype) for name, value in arrays.items()}
    given = torch.from_numpy(x).to(dtype).requires_grad_()
    logits = encoder(w, given, epsilon)
    (relevance,) = torch.autograd.grad(logits, given, start(logits))
    return logits.detach().numpy(), relevance.numpy()


def make_lxt(number: int, about: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([SEED, number])
    weights = Weights(rng)
    layers = dict.fromkeys(("q", "k", "v", "out"), (WIDTH, WIDTH))
    layers |= {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH), "head": (WIDTH, CLASSES)}
    for name, shape in layers.items():
        weights.kernel(name, *shape)
        weights.bias(name, shape[1])
    for name in ("norm1", "norm2"):
        weights.keep(f"{name}.gamma", rng.uniform(0.5, 1.5, WIDTH))
        weights.keep(f"{name}.beta", rng.normal(0, 0.3, WIDTH))
    x = rng.normal(size=(len(TARGET), TOKENS, WIDTH)).astype(np.float32)
    out = {f"weights/{key}": value for key, value in weights.arrays.items()}
    out |= {"x": x, "target": TARGET, "norm_eps": np.float64(NORM_EPS["attention"])}
    about["float32_distance"]["attention"] = distances = {}
    for name, epsilon in {"attention": 1e-16, "attention_default": None}.items():
        out["logits"], out[name] = lxt(weights.arrays, x, torch.float64, epsilon)
        _, single = lxt(weights.arrays, x, torch.float32, epsilon)
        assert single.dtype == np.float32 and out[name].dtype == np.float64
        out[f"{name}_float32_distance"] = np.float64(distance(single, out[name]))
        distances[name] = float(out[f"{name}_float32_distance"])
    about["attention_default_to_1e-16"] = distance(out["attention_default"], out["attention"])
    return out


def make() -> None:
    about: dict = {
        "peer": "zennit, lxt",
        "versions": {name: version(name).split("+")[0] for name in ("zennit", "lxt", "torch", "numpy")}
        | {"python": platform.python_version()},
        "made_by": "tests/golden/make_lrp.py",
        "date": MADE.isoformat(),
        "seed": [SEED, "the number of the network, from 0"],
        "layout": "NHWC images and relevances, HWIO kernels, (in, out) matrices; batch-norm unfolded",
        "calls": {
            "start": "autograd.grad(logits, x, one_hot(target) * logits) inside composite.context(net)",
            "epsilon_gamma_box": f"EpsilonGammaBox(low={LOW}, high={HIGH}); the other composites without arguments",
            "attention": "every epsilon 1e-16; attention_default: LXT's own (linear, mean, layer_norm 1e-6, add2, "
            "matmul 1e-8)",
        },
        "tolerance": {
            "float64": 1e-9,
            "float64_reason": "relative L2; same formulas in another order of summation, divided by denominators "
            "that cancel",
            "float32": 1e-4,
            "float32_reason": "relative L2 to the peer's float64 result, or the peer's own such distance where that "
            "is more",
        },
        "networks": {},
        "float32_distance": {},
    }
    arrays = {}
    for number, name in enumerate(NETWORKS):
        arrays |= {f"{name}/{key}": value for key, value in make_zennit(number, name, about).items()}
    arrays |= {f"attention/{key}": value for key, value in make_lxt(len(NETWORKS), about).items()}
    np.savez_compressed(FOLDER / "lrp.npz", **arrays)
    (FOLDER / "lrp.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about["float32_distance"], indent=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    make()
