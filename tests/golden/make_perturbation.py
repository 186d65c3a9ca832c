"""Golden arrays of the perturbation methods from Captum.

`python tests/golden/make_perturbation.py` writes `perturbation/*.npz, *.json`.

Runs in an environment with numpy, torch and captum; neither the package nor its tests import this file. Networks,
weights and inputs as in `make_captum.py`: `mlp`, and `conv_smooth` for images with channels. Float64 throughout, for
which Captum's casts to float32 (in the division of Occlusion, in the masks and sums of ShapleyValueSampling) are
widened; nothing else of it is changed.

`shapley_*` go through the stored permutations, given to Captum in place of its random ones.
"""

import contextlib
import datetime
import json
import pathlib
from unittest import mock

import numpy as np
import torch
from captum.attr import FeatureAblation, Occlusion, ShapleyValueSampling
from make_captum import CLASSES, conv_smooth, fill, mlp, provenance

FOLDER = pathlib.Path(__file__).parent / "perturbation"
MADE = datetime.date(2026, 11, 25)
SEED = 20261126
EXAMPLES = 2
ORDERS = 3

NETWORKS = {"mlp": (mlp, (20,)), "conv_smooth": (conv_smooth, (3, 12, 12))}
# Windows and strides, which are also what the tests call.
WINDOWS = {
    "mlp": {"narrow": ((3,), (1,)), "overhanging": ((4,), (3,))},
    "conv_smooth": {
        "all_channels": ((3, 4, 4), (1, 2, 2)),
        "one_channel": ((1, 5, 4), (1, 3, 4)),
        "sliding_channels": ((2, 5, 3), (1, 5, 2)),
    },
}
GROUPS = {"mlp": (np.arange(20) * 7) % 6, "conv_smooth": (np.arange(12)[:, None] // 4 * 3 + np.arange(12) // 4)[None]}


@contextlib.contextmanager
def float64_sums():
    """Captum's `.float()` and `torch.float` mean float64 inside this context: full precision, same algorithm."""
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(torch, "float", torch.float64),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def shapley(net, orders: np.ndarray) -> ShapleyValueSampling:
    method = ShapleyValueSampling(net)
    method.permutation_generator = lambda *_: iter(orders.tolist())
    return method


def make(number: int, name: str) -> None:
    build, shape = NETWORKS[name]
    rng = np.random.default_rng([SEED, number])
    net = build().eval()
    weights = fill(net, rng)
    net = net.double()
    x = rng.normal(size=(EXAMPLES, *shape)).astype(np.float32)
    baseline = rng.normal(0, 0.5, (1, *shape)).astype(np.float32)
    target = np.arange(EXAMPLES) % CLASSES
    groups = GROUPS[name]
    orders = np.stack([rng.permutation(groups.max() + 1) for _ in range(ORDERS)])
    given, start = (torch.from_numpy(a).double() for a in (x, baseline))
    label, mask = torch.from_numpy(target), torch.from_numpy(groups)[None]
    with torch.no_grad(), float64_sums():
        out = {
            "logits": net(given),
            "ablation_features": FeatureAblation(net).attribute(given, start, label),
            "ablation_groups": FeatureAblation(net).attribute(given, start, label, feature_mask=mask),
            "shapley_groups": shapley(net, orders).attribute(given, start, label, feature_mask=mask, n_samples=ORDERS),
        }
        for key, (window, strides) in WINDOWS[name].items():
            out[f"occlusion_{key}"] = Occlusion(net).attribute(given, window, strides, start, label)
    stored = {key: value.numpy() for key, value in out.items()}
    assert all(value.dtype == np.float64 for value in stored.values())
    arrays = {f"weights/{key}": value for key, value in weights.items()}
    arrays |= {"x": x, "target": target, "baseline": baseline[0], "groups": groups, "orders": orders}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays, **stored)

    about = provenance(__file__, MADE, [SEED, number], net) | {
        "calls": {
            "ablation_features": "FeatureAblation(net).attribute(x, baseline, target)",
            "ablation_groups": "FeatureAblation(net).attribute(x, baseline, target, feature_mask=groups)",
            "shapley_groups": "ShapleyValueSampling(net).attribute(x, baseline, target, feature_mask=groups), "
            "permutations: orders",
            "occlusion_*": "Occlusion(net).attribute(x, window, strides, baseline, target)",
        },
        "windows": {key: {"window": window, "strides": strides} for key, (window, strides) in WINDOWS[name].items()},
        "tolerance": {
            "float64": 1e-9,
            "float64_reason": "relative L2; differences of scores, which magnify their rounding, in another order of "
            "summation",
        },
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
    print(name, {key: float(np.abs(value).max()) for key, value in stored.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for i, network in enumerate(NETWORKS):
        make(i, network)
