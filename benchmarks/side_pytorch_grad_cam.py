"""pytorch-grad-cam's side: Captum's network, hooked once outside the timing.

Its maps have the size of the input and are scaled to [0, 1].
"""

import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # one progress bar per image; before tqdm is imported

import cv2
import numpy as np
import side_captum
import torch
from problems import load
from pytorch_grad_cam import AblationCAM, GradCAM, GradCAMPlusPlus, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

BY_GRADIENT = {"grad_cam": GradCAM, "grad_cam_plus_plus": GradCAMPlusPlus}
BY_FORWARD_PASSES = {"score_cam": ScoreCAM, "ablation_cam": AblationCAM}

# As shipped, Score-CAM up-samples its masks with aligned corners, which is off by half a pixel of the layer (of 4).
# A softmax of logits makes 0.2 to 0.3 of relative L2 of it, so that nothing could be checked. With our centers the work
# is the same.
torch.nn.UpsamplingBilinear2d = partial(torch.nn.Upsample, mode="bilinear", align_corners=False)  # type: ignore[assignment, misc]


def versions() -> dict[str, str]:
    torch_version = torch.__version__.split("+")[0]
    return {"grad-cam": version("grad-cam"), "torch": torch_version, "numpy": np.__version__, "opencv": cv2.__version__}


def limit_threads(threads: int) -> None:
    side_captum.limit_threads(threads)
    cv2.setNumThreads(threads)


def prepare(job: dict) -> tuple[Callable[[], Any], dict]:
    problem, settings, method = load(job["problem"]), job["settings"], job["method"]
    memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[settings["layout"]]
    net = side_captum.network(problem).to(memory_format=memory)
    whole_graph = settings.get("graph") == "whole"
    for weight in net.parameters():
        weight.requires_grad_(whole_graph)
    layer = side_captum.last_maps(net, graph=method in BY_GRADIENT and not whole_graph)
    cam = (BY_GRADIENT | BY_FORWARD_PASSES)[method](net, [layer])
    if method in BY_FORWARD_PASSES:
        cam.batch_size = settings["at_once"]  # masked images, or ablated channels, of one example
    x = torch.from_numpy(np.ascontiguousarray(problem.x.transpose(0, 3, 1, 2))).contiguous(memory_format=memory)
    targets = [ClassifierOutputTarget(int(label)) for label in problem.labels]
    batch_size = settings.get("batch_size") or len(x)

    def run() -> np.ndarray:
        parts = zip(x.split(batch_size), range(0, len(x), batch_size), strict=True)
        return np.concatenate([cam(part, targets[start : start + batch_size]) for part, start in parts])

    return run, {}


def to_numpy(result: Any) -> np.ndarray:
    return result
