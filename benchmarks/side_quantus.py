"""Quantus' side: measures of given maps on Captum's network. The maps are random numbers (`maps`), without ties.

Settings of a job, besides those of the metric:
- `layout`: PyTorch's memory format.
- `batch_size`: Quantus' own default is 64.
- `explain`: "quantus" (its own function, which calls Captum) or "torch" (the least work there is).
- `only="model"`: do as many forward passes and explanations as the metric does, one batch each, and nothing else. The
  metric's time over this one is the cost of the metric itself. `prepare` returns their numbers.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported

import numpy as np
import quantus
import scipy
import side_captum
import torch
from problems import Problem, load
from quantus.helpers.model.pytorch_model import PyTorchModel
from torch import nn

SEED = 20261127
GIVEN = {"abs": False, "normalize": False, "return_aggregate": False, "disable_warnings": True}  # the maps, as they are
METRICS: dict[str, tuple[type, dict[str, Any]]] = {
    "pixel_flipping": (quantus.PixelFlipping, {"perturb_baseline": 0.0, "features_in_step": 16}),
    "region_perturbation": (quantus.RegionPerturbation, {"perturb_baseline": 0.0, "patch_size": 4}),
    "selectivity": (quantus.Selectivity, {"perturb_baseline": 0.0, "patch_size": 4}),
    "faithfulness_correlation": (
        quantus.FaithfulnessCorrelation,
        {"perturb_baseline": 0.0, "subset_size": 196, "nr_runs": 50},
    ),
    "road": (quantus.ROAD, {"percentages": list(range(10, 100, 10)), "noise": 0.0}),
    "max_sensitivity": (quantus.MaxSensitivity, {"nr_samples": 10, "lower_bound": 0.2}),
    "mprt": (quantus.MPRT, {"layer_order": "top_down"}),  # by Spearman's correlation
}
BY_EXPLAINING = ("max_sensitivity", "mprt")  # of gradients; no maps are given


def versions() -> dict[str, str]:
    torch_version = torch.__version__.split("+")[0]
    return {
        "quantus": quantus.__version__,
        "torch": torch_version,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def limit_threads(threads: int) -> None:
    side_captum.limit_threads(threads)


def maps(problem: Problem) -> np.ndarray:
    """One map per example, (example, height, width, channels)."""
    return np.random.default_rng(SEED).normal(size=problem.x.shape).astype(np.float32)


def _gradient(model: nn.Module, inputs: Any, targets: np.ndarray, **_: Any) -> np.ndarray:
    x = torch.as_tensor(inputs, dtype=torch.float32).requires_grad_(True)
    chosen = model(x).gather(1, torch.as_tensor(targets)[:, None])
    return torch.autograd.grad(chosen.sum(), x)[0].numpy()


def _quantus_gradient(model: nn.Module, inputs: Any, targets: np.ndarray, **_: Any) -> np.ndarray:
    return quantus.explain(model, inputs, targets, method="Gradient")


EXPLAIN = {"quantus": _quantus_gradient, "torch": _gradient}


@contextlib.contextmanager
def _counting(calls: dict[str, int]) -> Iterator[None]:
    """Batches that Quantus has the model predict, or explain, inside this context."""
    predict, explain = PyTorchModel.predict, quantus.metrics.base.Metric.explain_batch

    def counted(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    with (
        mock.patch.object(PyTorchModel, "predict", counted("forward_passes", predict)),
        mock.patch.object(quantus.metrics.base.Metric, "explain_batch", counted("explanations", explain)),
    ):
        yield


def prepare(job: dict) -> tuple[Callable[[], Any], dict]:
    problem, settings = load(job["problem"]), dict(job["settings"])
    memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[settings.pop("layout")]
    batch_size = settings.pop("batch_size", None) or len(problem.x)
    explain, only = EXPLAIN[settings.pop("explain", "quantus")], settings.pop("only", None)
    net = side_captum.network(problem).to(memory_format=memory)
    x, given = (np.ascontiguousarray(a.transpose(0, 3, 1, 2)) for a in (problem.x, maps(problem)))
    y = problem.labels.astype(np.int64)
    kind, usual = METRICS[job["method"]]
    call = {"a_batch": None, "explain_func": explain} if job["method"] in BY_EXPLAINING else {"a_batch": given}

    def measure() -> Any:
        np.random.seed(SEED)  # whatever it draws, the same each time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some step changed nothing: pixels that were black
            metric = kind(**(GIVEN | usual | settings))
            result = metric(net, x, y, softmax=False, channel_first=True, batch_size=batch_size, **call)
            return to_numpy(result)[:, 1:] if job["method"] == "mprt" else result  # its first step is no step: 1

    calls = {"forward_passes": 0, "explanations": 0}
    with _counting(calls):
        measure()
    if only is None:
        return measure, calls
    parts = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(x), batch_size)]

    def model_alone() -> Any:
        result = None
        with torch.no_grad():
            for number in range(calls["forward_passes"]):
                result = net(torch.Tensor(parts[number % len(parts)][0])).numpy()
        for number in range(calls["explanations"]):
            result = explain(net, *parts[number % len(parts)])
        return result

    return model_alone, calls


def to_numpy(result: Any) -> np.ndarray:
    """Example first, then steps or (MPRT: one more layer each) networks; ROAD has no examples, only percentages."""
    if isinstance(result, dict):
        array = np.asarray(list(result.values()))
        return array.T if array.ndim == 2 else array
    return np.asarray(result)
