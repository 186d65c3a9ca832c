"""Golden arrays of DeepLIFT from Captum: `python tests/golden/make_deeplift.py` writes `deeplift/*.npz, *.json`.

Runs in an environment with numpy, torch and captum; neither the package nor its tests import this file. Networks on
which Captum is right: every activation a module of its own, from its list, used once; no max-pool; random inputs
without ties:

* `mlp` and `cnn_avgpool`: those of `make_captum.py`;
* `activations`: dense layers with tanh, sigmoid, softplus, leaky ReLU and ELU between.

Float64 throughout. `deeplift_references` is `DeepLiftShap`, the mean over several references.
"""

import datetime
import json
import pathlib

import numpy as np
import torch
from captum.attr import DeepLift, DeepLiftShap
from make_captum import CLASSES, EXAMPLES, cnn_avgpool, fill, mlp, provenance
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "deeplift"
MADE = datetime.date(2026, 11, 25)
SEED = 20261125
REFERENCES = 3


def activations() -> nn.Sequential:
    layers: list[nn.Module] = []
    for activation in (nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.LeakyReLU(0.1), nn.ELU()):
        layers += [nn.Linear(12, 12), activation]
    return nn.Sequential(*layers, nn.Linear(12, CLASSES))


NETWORKS = {"mlp": (mlp, (20,)), "cnn_avgpool": (cnn_avgpool, (1, 12, 12)), "activations": (activations, (12,))}


def make(number: int, name: str) -> None:
    build, shape = NETWORKS[name]
    rng = np.random.default_rng([SEED, number])
    net = build().eval()
    weights = fill(net, rng)
    net = net.double()
    x, baseline, references = (
        rng.normal(0, scale, (n, *shape)).astype(np.float32)
        for n, scale in ((EXAMPLES, 1.0), (1, 0.5), (REFERENCES, 0.7))
    )
    target = np.arange(EXAMPLES) % CLASSES
    given, start, several = (torch.from_numpy(a).double() for a in (x, baseline, references))
    label = torch.from_numpy(target)

    def numbers(result: torch.Tensor) -> np.ndarray:
        return result.detach().numpy()

    out = {
        "logits": numbers(net(given)),
        "deeplift_zero": numbers(DeepLift(net).attribute(given, torch.zeros_like(start), label)),
        "deeplift_baseline": numbers(DeepLift(net).attribute(given, start, label)),
        "deeplift_references": numbers(DeepLiftShap(net).attribute(given, several, label)),
    }
    arrays = {f"weights/{key}": value for key, value in weights.items()}
    arrays |= {"x": x, "target": target, "baseline": baseline[0], "references": references} | out
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    delta = net(given)[range(EXAMPLES), label] - net(start)[0, label]
    gap = np.abs(out["deeplift_baseline"].reshape(EXAMPLES, -1).sum(1) - numbers(delta)).max()
    about = provenance(__file__, MADE, [SEED, number], net) | {
        "calls": {
            "deeplift_zero": "DeepLift(net).attribute(x, zeros, target)",
            "deeplift_baseline": "DeepLift(net).attribute(x, baseline, target)",
            "deeplift_references": "DeepLiftShap(net).attribute(x, references, target)",
        },
        "tolerance": {
            "float64": 1e-10,
            "float64_reason": "relative L2; the same formula in another order of summation",
        },
        "peer_gap": {"deeplift_baseline": float(gap)},
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
    print(name, "gap of the peer's own sums:", gap)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for i, network in enumerate(NETWORKS):
        make(i, network)
