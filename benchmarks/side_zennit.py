"""Zennit's side: Captum's network under Zennit's composite, whose hooks are registered once outside the timing."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import side_captum
import torch
from problems import load
from torch import nn
from zennit.composites import EpsilonPlusFlat
from zennit.layer import Sum

limit_threads = side_captum.limit_threads
to_numpy = side_captum.to_numpy


def versions() -> dict[str, str]:
    return {"zennit": version("zennit"), "torch": torch.__version__.split("+")[0], "numpy": np.__version__}


class Residual(nn.Module):
    """With Zennit's Sum, so that the addition gets a rule: a plain `+` would copy the relevance."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.sum = body, Sum(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sum(torch.stack([x, self.body(x)], dim=-1))


COMPOSITES = {"lrp": EpsilonPlusFlat}


def prepare(job: dict) -> tuple[Callable[[], Any], dict]:
    problem = load(job["problem"])
    memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[job["settings"]["layout"]]
    net = side_captum.network(problem, Residual).to(memory_format=memory)
    COMPOSITES[job["method"]]().register(net)
    x = torch.from_numpy(np.ascontiguousarray(problem.x.transpose(0, 3, 1, 2))).contiguous(memory_format=memory)
    target = torch.from_numpy(problem.labels.astype(np.int64))[:, None]

    batch_size = job["settings"].get("batch_size") or len(x)

    def explain(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        logits = net(leaf)
        start = torch.zeros_like(logits).scatter(1, target, logits.detach().gather(1, target))
        return torch.autograd.grad(logits, leaf, start)[0]

    def run() -> torch.Tensor:
        parts = zip(x.split(batch_size), target.split(batch_size), strict=True)
        return torch.cat([explain(*part) for part in parts])

    return run, {}
