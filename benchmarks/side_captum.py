"""Captum's side: the same network in PyTorch, the same weights, images in PyTorch's NCHW layout (converted untimed)."""

from collections.abc import Callable
from typing import Any

import captum
import numpy as np
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from problems import Problem, load
from torch import nn

SEED = 20261123


def versions() -> dict[str, str]:
    return {"captum": captum.__version__, "torch": torch.__version__.split("+")[0], "numpy": np.__version__}


def limit_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def network(problem: Problem) -> nn.Sequential:
    """`problem.layers` as PyTorch modules. A dense layer after the flattening reads its inputs in PyTorch's (c, h, w) order."""
    shape = (1, *problem.x.shape[1:])
    modules: list[nn.Module] = []
    flattened: tuple[int, ...] | None = None
    for kind, *rest in problem.layers:
        if kind in ("conv", "dense"):
            kernel, bias = (problem.weights[f"{rest[0]}/{part}"] for part in ("kernel", "bias"))
        if kind == "conv":
            module: nn.Module = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[:2], padding="same")
            module.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            shape = (*shape[:3], kernel.shape[3])
        elif kind == "dense":
            if flattened is not None:
                kernel = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                flattened = None
            module = nn.Linear(*kernel.shape)
            module.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.T))
        elif kind == "max_pool":
            module = nn.MaxPool2d(2, ceil_mode=True)
            shape = (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), shape[3])
        elif kind == "flatten":
            module, flattened = nn.Flatten(), shape[1:]
        else:
            module = {"relu": nn.ReLU}[kind]()
        if kind in ("conv", "dense"):
            module.bias.data = torch.from_numpy(bias.copy())
        modules.append(module)
    net = nn.Sequential(*modules).eval()
    return net.requires_grad_(False)  # only the input's gradient is wanted


def _gradient(net: nn.Module, _problem: Problem, settings: dict) -> Callable:
    return lambda x, target: Saliency(net).attribute(x, target, abs=False, **settings)


def _integrated_gradients(net: nn.Module, _problem: Problem, settings: dict) -> Callable:
    return lambda x, target: IntegratedGradients(net).attribute(x, target=target, **settings)


def _smoothgrad(net: nn.Module, problem: Problem, settings: dict) -> Callable:
    def run(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(SEED)
        tunnel = NoiseTunnel(Saliency(net))
        return tunnel.attribute(x, nt_type="smoothgrad", stdevs=problem.noise, target=target, abs=False, **settings)

    return run


METHODS = {"gradient": _gradient, "integrated_gradients": _integrated_gradients, "smoothgrad": _smoothgrad}


def prepare(job: dict) -> tuple[Callable[[], Any], dict]:
    problem = load(job["problem"])
    settings = dict(job["settings"])
    memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[settings.pop("layout")]
    method = METHODS[job["method"]](network(problem).to(memory_format=memory), problem, settings)
    x = torch.from_numpy(np.ascontiguousarray(problem.x.transpose(0, 3, 1, 2))).contiguous(memory_format=memory)
    target = torch.from_numpy(problem.labels.astype(np.int64))
    return lambda: method(x.clone().requires_grad_(True), target), {}


def to_numpy(result: Any) -> np.ndarray:
    return np.ascontiguousarray(result.detach().numpy().transpose(0, 2, 3, 1))
