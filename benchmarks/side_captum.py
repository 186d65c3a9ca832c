"""Captum's side: the same network in PyTorch, the same weights, images in PyTorch's NCHW layout (converted untimed)."""

from collections.abc import Callable
from typing import Any

import captum
import numpy as np
import torch
from captum.attr import DeepLift, GuidedBackprop, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from networks import NORM_EPS
from problems import Problem, load
from torch import nn

SEED = 20261123


def versions() -> dict[str, str]:
    return {"captum": captum.__version__, "torch": torch.__version__.split("+")[0], "numpy": np.__version__}


def limit_threads(threads: int) -> None:
    torch.set_num_threads(threads)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def network(problem: Problem, residual: Callable[[nn.Module], nn.Module] = Residual) -> nn.Sequential:
    """`problem.layers` as PyTorch modules, each batch-norm folded into the convolution before it."""
    net, _ = _sequence(problem.layers, problem.weights, problem.x.shape[1:], residual)
    return net.eval().requires_grad_(False)  # only the input's gradient is wanted


def _sequence(
    layers: list, weights: dict[str, np.ndarray], shape: tuple[int, ...], residual: Callable[[nn.Module], nn.Module]
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """The modules, and the shape of the output. A dense layer after `flatten` reads (c, h, w) order."""
    modules: list[nn.Module] = []
    flattened: tuple[int, ...] | None = None
    for number, (kind, *rest) in enumerate(layers):
        if kind == "conv":
            norm = layers[number + 1][1] if layers[number + 1][0] == "batch_norm" else None
            kernel, bias = _folded(weights, rest[0], norm)
            groups, padding = shape[2] // kernel.shape[2], (kernel.shape[0] // 2, kernel.shape[1] // 2)
            module: nn.Module = nn.Conv2d(
                shape[2], kernel.shape[3], kernel.shape[:2], stride=rest[1], padding=padding, groups=groups
            )
            _set(module, kernel.transpose(3, 2, 0, 1), bias)
            shape = (-(-shape[0] // rest[1]), -(-shape[1] // rest[1]), kernel.shape[3])
        elif kind == "batch_norm":
            continue
        elif kind == "dense":
            kernel, bias = (weights[f"{rest[0]}/{part}"] for part in ("kernel", "bias"))
            if flattened is not None:
                kernel = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                flattened = None
            module = nn.Linear(*kernel.shape)
            _set(module, kernel.T, bias)
        elif kind == "residual":
            body, shape = _sequence(rest[0], weights, shape, residual)
            module = residual(body)
        elif kind == "max_pool":
            module = nn.MaxPool2d(2, ceil_mode=True)
            shape = (-(-shape[0] // 2), -(-shape[1] // 2), shape[2])
        elif kind == "global_mean":
            modules.append(nn.AdaptiveAvgPool2d(1))
            module = nn.Flatten()
        elif kind == "flatten":
            module, flattened = nn.Flatten(), shape
        else:
            module = {"relu": nn.ReLU, "relu6": nn.ReLU6}[kind]()
        modules.append(module)
    return nn.Sequential(*modules), shape


def _folded(weights: dict[str, np.ndarray], name: str, norm: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a convolution, with the batch-norm of that name in them; in float64 meanwhile."""
    kernel = weights[f"{name}/kernel"].astype(np.float64)
    bias = weights.get(f"{name}/bias", np.zeros(kernel.shape[-1])).astype(np.float64)
    if norm is not None:
        gamma, beta, mean, var = (
            weights[f"{norm}/{part}"].astype(np.float64) for part in ("gamma", "beta", "mean", "var")
        )
        scale = gamma / np.sqrt(var + NORM_EPS)
        kernel, bias = kernel * scale, (bias - mean) * scale + beta
    return kernel.astype(np.float32), bias.astype(np.float32)


def _set(module: Any, weight: np.ndarray, bias: np.ndarray) -> None:
    module.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
    module.bias.data = torch.from_numpy(bias.copy())


def _gradient(net: nn.Module, _problem: Problem, settings: dict) -> Callable:
    return lambda x, target: Saliency(net).attribute(x, target, abs=False, **settings)


def _guided_backprop(net: nn.Module, _problem: Problem, settings: dict) -> Callable:
    return lambda x, target: GuidedBackprop(net).attribute(x, target, **settings)


def _deeplift(net: nn.Module, _problem: Problem, settings: dict) -> Callable:
    return lambda x, target: DeepLift(net).attribute(x, target=target, **settings)


def _integrated_gradients(net: nn.Module, _problem: Problem, settings: dict) -> Callable:
    return lambda x, target: IntegratedGradients(net).attribute(x, target=target, **settings)


def _smoothgrad(net: nn.Module, problem: Problem, settings: dict) -> Callable:
    def run(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(SEED)
        tunnel = NoiseTunnel(Saliency(net))
        return tunnel.attribute(x, nt_type="smoothgrad", stdevs=problem.noise, target=target, abs=False, **settings)

    return run


def last_maps(net: nn.Sequential, *, graph: bool = True) -> nn.Module:
    """The layer of class activation maps. With `graph`, autograd's graph starts at its output, not at the input.

    Neither the input nor the weights need a gradient, so the layers below run without autograd, which is the least work
    for the peers.
    """
    layer = next(module for module in reversed(net) if isinstance(module, nn.MaxPool2d))
    if graph:
        layer.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))
    return layer


def _grad_cam(net: nn.Sequential, _problem: Problem, settings: dict) -> Callable:
    cam = LayerGradCam(net, last_maps(net))
    return lambda x, target: cam.attribute(x.detach(), target, relu_attributions=True, **settings)[:, 0]


METHODS = {
    "gradient": _gradient,
    "guided_backprop": _guided_backprop,
    "deeplift": _deeplift,
    "integrated_gradients": _integrated_gradients,
    "smoothgrad": _smoothgrad,
    "grad_cam": _grad_cam,
}


def prepare(job: dict) -> tuple[Callable[[], Any], dict]:
    problem = load(job["problem"])
    settings = dict(job["settings"])
    batch_size = settings.pop("batch_size", None) or len(problem.x)
    memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[settings.pop("layout")]
    method = METHODS[job["method"]](network(problem).to(memory_format=memory), problem, settings)
    x = torch.from_numpy(np.ascontiguousarray(problem.x.transpose(0, 3, 1, 2))).contiguous(memory_format=memory)
    target = torch.from_numpy(problem.labels.astype(np.int64))

    def run() -> torch.Tensor:
        parts = zip(x.split(batch_size), target.split(batch_size), strict=True)
        return torch.cat([method(part.clone().requires_grad_(True), labels) for part, labels in parts])

    return run, {}


def to_numpy(result: Any) -> np.ndarray:
    array = result.detach().numpy()
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)  # else maps (example, h, w)
