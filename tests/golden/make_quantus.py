"""Golden arrays of metrics from Quantus: `python tests/golden/make_quantus.py` writes `quantus/*.npz, *.json`.

Runs in an environment with numpy, torch, captum and quantus; neither the package nor its tests import this file. One
small smooth network, six inputs and two maps of each (`network.npz`), then per family of metrics what Quantus returns.
Everything in float64, for which torch's default type is widened; weights, inputs and random maps are float32 numbers.
Maps are given as they are (`abs=False, normalise=False` unless an entry says otherwise), scores are logits unless
`softmax` is true.

What Quantus draws at random is stored beside its result: `choice`, `uniform`, `permutation` and `randn` of
`numpy.random` are recorded, and perturbed inputs are given through its own `perturb_func`. IROF is given the stored
segments in place of superpixels.

Each json lists under `arrays`, for each result: the metric, the settings of its constructor, what it was called with.

Changed for the purpose: `numpy.trapz`, which Quantus 0.6 calls and NumPy 2.4 no longer has, is `numpy.trapezoid`.
"""

import collections
import contextlib
import datetime
import io
import json
import pathlib
import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import quantus
import scipy
import skimage
import sklearn
import torch
from quantus.functions.perturb_func import noisy_linear_imputation
from quantus.functions.similarity_func import correlation_pearson, correlation_spearman, ssim
from quantus.helpers.model.pytorch_model import PyTorchModel
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "quantus"
MADE = datetime.date(2026, 11, 25)
SEED = 20261127
EXAMPLES, CLASSES, SIZE = 6, 4, 12
FEATURES = SIZE**2
NAMES = {correlation_pearson: "pearson", correlation_spearman: "spearman", ssim: "ssim"}


def network() -> nn.Sequential:
    layers = {
        "conv1": nn.Conv2d(1, 6, 3, padding=1),
        "tanh": nn.Tanh(),
        "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(6, 8, 3),
        "silu": nn.SiLU(),
        "pool2": nn.AvgPool2d(2),
        "flat": nn.Flatten(),
        "dense": nn.Linear(32, CLASSES),
    }
    return nn.Sequential(collections.OrderedDict(layers)).eval()


def fill(net: nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in net.state_dict().items():
        shape = tuple(tensor.shape)
        scale = 2 * np.sqrt(2 / np.prod(shape[1:])) if name.endswith("weight") else 0.3
        arrays[name] = rng.normal(0, scale, shape).astype(np.float32)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return arrays


def gradient(model: nn.Module, inputs: Any, targets: np.ndarray, **_: Any) -> np.ndarray:
    x = torch.tensor(np.asarray(inputs), requires_grad=True)
    model(x)[range(len(x)), targets].sum().backward()
    return x.grad.numpy()


def input_x_gradient(model: nn.Module, inputs: Any, targets: np.ndarray, **_: Any) -> np.ndarray:
    return np.asarray(inputs) * gradient(model, inputs, targets)


EXPLAIN = {"gradient": gradient, "input_x_gradient": input_x_gradient}


class Given:
    """A `perturb_func` that hands out stored perturbed inputs, one batch per call."""

    def __init__(self, batches: np.ndarray) -> None:
        self.batches = iter(batches)

    def __call__(self, arr: np.ndarray, **_: Any) -> np.ndarray:
        return next(self.batches).reshape(arr.shape)


@contextlib.contextmanager
def recorded(name: str) -> Iterator[list]:
    """The results of each call of `numpy.random.<name>`."""
    real, calls = getattr(np.random, name), []

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(real(*args, **kwargs))
        return calls[-1]

    with mock.patch.object(np.random, name, record):
        yield calls


class Family:
    """The results of one family of metrics, and how each was made."""

    def __init__(self, name: str, net: nn.Module | None, data: dict[str, np.ndarray]) -> None:
        self.name, self.net, self.data = name, net, data
        self.arrays: dict[str, np.ndarray] = {}
        self.about: dict[str, dict] = {}

    def call(
        self, metric: type, a: np.ndarray | None, settings: dict, softmax: bool, call: dict, only: slice = slice(None)
    ) -> Any:
        init = {"abs": False, "normalise": False, "return_aggregate": False, "disable_warnings": True} | settings
        a = None if a is None else a[only].copy()  # some metrics write into it
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {"model": self.net, "x_batch": self.data["x"][only], "y_batch": self.data["y"][only], "a_batch": a}
            return metric(**init)(**given, **({"softmax": True} if softmax else {"softmax": False}), **call)

    def run(
        self,
        key: str,
        metric: type,
        name: str,
        a: np.ndarray | None,
        *,
        softmax: bool = False,
        one_by_one: bool = False,
        call: dict | None = None,
        note: str = "",
        **settings: Any,
    ) -> Any:
        """One call of a metric. `name` is that of the given map; with `one_by_one` each example is a batch."""
        call = call or {}
        if one_by_one:
            parts = [self.call(metric, a, settings, softmax, call, slice(i, i + 1)) for i in range(len(self.data["x"]))]
            result = [list(part.values()) if isinstance(part, dict) else part[0] for part in parts]
        else:
            result = self.call(metric, a, settings, softmax, call)
        plain = {k: NAMES[v] if callable(v) else v for k, v in settings.items() if k != "perturb_func"}
        about = {"metric": metric.__name__, "map": name, "softmax": softmax, "settings": plain}
        about |= {"explain": call["explain_func"].__name__} if "explain_func" in call else {}
        about |= {"one_by_one": True} if one_by_one else {}
        if isinstance(result, dict):
            about["rows"] = list(result)
            result = list(result.values())
        self.put(key, np.asarray(result), **about | ({"note": note} if note else {}))
        return result

    def put(self, key: str, value: np.ndarray, **about: Any) -> None:
        assert key not in self.arrays, key
        self.arrays[key] = value
        self.about[key] = {"shape": list(np.shape(value))} | about

    def write(self, tolerance: str) -> None:
        np.savez_compressed(FOLDER / f"{self.name}.npz", **self.arrays)
        about = {
            "peer": "quantus",
            "versions": {
                "quantus": quantus.__version__,
                "torch": torch.__version__.split("+")[0],
                "numpy": np.__version__,
                "scipy": scipy.__version__,
                "scikit-image": skimage.__version__,
                "scikit-learn": sklearn.__version__,
                "python": platform.python_version(),
            },
            "made_by": "python tests/golden/make_quantus.py",
            "date": MADE.isoformat(),
            "seed": SEED,
            "layout": "NCHW images, OIHW kernels, (out, in) matrices",
            "tolerance": tolerance,
        }
        lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in self.about.items())
        body = json.dumps(about, indent=2)[:-2] + ',\n  "arrays": {\n' + lines + "\n  }\n}\n"
        (FOLDER / f"{self.name}.json").write_text(body)
        json.loads(body)
        size = sum((FOLDER / f"{self.name}.{end}").stat().st_size for end in ("npz", "json"))
        print(f"{self.name}: {len(self.arrays)} arrays, {size / 1000:.0f} kB")


def label(**settings: Any) -> str:
    return ",".join(f"{k}={v}" for k, v in settings.items())


def cells(rng: np.random.Generator) -> np.ndarray:
    """A segmentation of each image: the pixels nearest to one of 8 to 12 points."""
    at = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1).reshape(-1, 1, 2)
    numbers = []
    for i in range(EXAMPLES):
        points = rng.uniform(0, SIZE, (8 + i % 5, 2))
        _, number = np.unique(((at - points) ** 2).sum(-1).argmin(1), return_inverse=True)
        numbers.append(number.reshape(SIZE, SIZE))
    return np.stack(numbers).astype(np.uint8)


@contextlib.contextmanager
def segmented(images: np.ndarray, segments: np.ndarray) -> Iterator[None]:
    """Quantus takes these segments instead of superpixels."""

    def look_up(img: np.ndarray, **_: Any) -> np.ndarray:
        (number,) = np.flatnonzero((images[:, 0] == img[..., 0]).all((1, 2)))
        return segments[number]

    with mock.patch.object(quantus.metrics.faithfulness.irof.utils, "get_superpixel_segments", look_up):
        yield


def faithfulness(net: nn.Module, data: dict, rng: np.random.Generator) -> None:
    out = Family("faithfulness", net, data)
    x = data["x"]
    segments = cells(rng)
    for name in ("random", "input_x_gradient"):
        a = data[f"maps/{name}"]
        for step, baseline in ((1, 0.25), (6, "black"), (6, "white"), (6, "mean"), (6, 0.25)):
            key = f"pixel_flipping/{name}/{label(step=step, baseline=baseline)}"
            settings = {"features_in_step": step, "perturb_baseline": baseline}
            note = "the mean of the image as flipped so far" if baseline == "mean" else ""
            out.run(key, quantus.PixelFlipping, name, a, note=note, **settings)
        settings = {"features_in_step": 6, "perturb_baseline": 0.25}
        out.run(f"pixel_flipping_auc/{name}", quantus.PixelFlipping, name, a, return_auc_per_sample=True, **settings)
        out.run(f"pixel_flipping_softmax/{name}", quantus.PixelFlipping, name, a, softmax=True, **settings)
        out.run(
            f"pixel_flipping_negated/{name}", quantus.PixelFlipping, name, -a, note="least relevant first", **settings
        )

        for patch, order, baseline in (
            (4, "morf", "black"),
            (4, "lerf", 0.25),
            (3, "morf", "mean"),
            (5, "morf", 0.25),
            (5, "morf", "mean"),
        ):
            key = f"region_perturbation/{name}/{label(patch=patch, order=order, baseline=baseline)}"
            note = "12 is no multiple of 5: one row and column of zeros before, two after" if patch == 5 else ""
            settings = {"patch_size": patch, "order": order, "perturb_baseline": baseline}
            out.run(key, quantus.RegionPerturbation, name, a, note=note, **settings)
        settings = {"patch_size": 3, "perturb_baseline": 0.25, "regions_evaluation": 5}
        out.run(f"region_perturbation_first_five/{name}", quantus.RegionPerturbation, name, a, **settings)
        for patch, baseline in ((4, "black"), (3, 0.25), (5, "mean")):
            key = f"selectivity/{name}/{label(patch=patch, baseline=baseline)}"
            out.run(key, quantus.Selectivity, name, a, patch_size=patch, perturb_baseline=baseline)

        for step, baseline, similarity in (
            (1, 0.25, correlation_pearson),
            (6, "black", correlation_pearson),
            (6, "mean", correlation_spearman),
        ):
            key = f"faithfulness_estimate/{name}/{label(step=step, baseline=baseline, similarity=NAMES[similarity])}"
            settings = {"features_in_step": step, "perturb_baseline": baseline, "similarity_func": similarity}
            out.run(key, quantus.FaithfulnessEstimate, name, a, **settings)
            settings |= {"nr_samples": 1, "eps": 1e-5}
            key = key.replace("faithfulness_estimate", "monotonicity_correlation")
            out.run(key, quantus.MonotonicityCorrelation, name, np.abs(a), note="the map is |map|", **settings)
        out.run(f"monotonicity/{name}", quantus.Monotonicity, name, a, perturb_baseline=0.25, features_in_step=6)
        for step, baseline in ((1, 0.25), (12, "black")):
            settings = {"features_in_step": step, "perturb_baseline": baseline, "n_max_percentage": 0.8}
            note = "per step a correlation over the examples"
            out.run(f"sensitivity_n/{name}/{label(**settings)}", quantus.SensitivityN, name, a, note=note, **settings)

        for patches in ([4], [3, 4]):
            note = "patches are replaced one on top of the other; every perturbation sample is the same"
            settings = {"perturb_patch_sizes": patches, "n_perturb_samples": 2, "perturb_baseline": 0.25}
            out.run(f"infidelity_patches/{name}/patches={patches}", quantus.Infidelity, name, a, note=note, **settings)
        settings = {"perturb_baseline": 0.25, "eps": 0.05}
        out.run(f"non_sensitivity/{name}", quantus.NonSensitivity, name, a, abs=True, **settings)
        for threshold in (0.6, 0.9):
            note = "distances are divided by the largest of the batch"
            out.run(f"sufficiency/{name}/{threshold}", quantus.Sufficiency, name, a, note=note, threshold=threshold)
        settings = {"softmax": True, "perturb_baseline": 0.25}
        with segmented(x, segments):
            out.run(f"irof/{name}/baseline=0.25", quantus.IROF, name, a, one_by_one=True, **settings)
        settings = {"softmax": True, "perturb_baseline": "mean"}
        note = "a batch of one: the mean of the one image as perturbed so far"
        with segmented(x, segments):
            out.run(f"irof/{name}/baseline=mean", quantus.IROF, name, a, one_by_one=True, note=note, **settings)
        note = "the mean of all six images as perturbed so far; shorter curves are padded with 0"
        with segmented(x, segments):
            out.run(f"irof/{name}/baseline=mean,batch", quantus.IROF, name, a, note=note, **settings)
        percentages = [10, 30, 50, 70, 90]
        out.run(
            f"road/{name}",
            quantus.ROAD,
            name,
            a,
            one_by_one=True,
            noise=0.0,
            percentages=percentages,
            note="1 where the class of the imputed image is y",
        )
    out.put("irof_segments", segments, note="example, row, column: number of the segment")

    for size in (4, 16, 72):
        for name in ("random", "input_x_gradient"):
            np.random.seed(size)
            with recorded("choice") as calls:
                settings = {"subset_size": size, "nr_runs": 20, "perturb_baseline": 0.0}
                out.run(
                    f"faithfulness_correlation/{name}/subset={size}",
                    quantus.FaithfulnessCorrelation,
                    name,
                    data[f"maps/{name}"],
                    **settings,
                )
            subsets = np.stack(calls).reshape(20, EXAMPLES, size).astype(np.uint8)
            if name == "random":
                out.put(f"faithfulness_correlation_subsets/{size}", subsets, note="run, example, flat index")
            else:
                assert (out.arrays[f"faithfulness_correlation_subsets/{size}"] == subsets).all()

    np.random.seed(1)
    with recorded("permutation") as calls:
        settings = {"patch_size": 4, "order": "random", "perturb_baseline": 0.25}
        out.run("region_perturbation_random", quantus.RegionPerturbation, "random", data["maps/random"], **settings)
    out.put("region_perturbation_random_order", np.stack(calls), note="example, step: number of the patch, row by row")

    np.random.seed(2)
    with recorded("uniform") as calls:
        settings = {"features_in_step": 12, "nr_samples": 4, "perturb_baseline": "uniform"}
        a = np.abs(data["maps/input_x_gradient"])
        key = "monotonicity_correlation_uniform"
        out.run(key, quantus.MonotonicityCorrelation, "input_x_gradient", a, note="the map is |map|", **settings)
    values = np.stack(calls).reshape(FEATURES // 12, 4, EXAMPLES)
    out.put("monotonicity_correlation_uniform_values", values, note="step, sample, example: the value put in")

    noise = rng.normal(0, 0.3, (5, *x.shape)).astype(np.float32)
    out.put("infidelity_noise", noise, note="sample, example, ...: I in the paper's f(x - I)")
    for name in ("random", "input_x_gradient"):
        # One patch as large as the image: one call of perturb_func for each sample.
        settings = {"perturb_patch_sizes": [SIZE], "n_perturb_samples": len(noise), "perturb_func": Given(x - noise)}
        note = "mean of (sum of map * I - (f(x) - f(x - I)))**2 over the stored I"
        out.run(f"infidelity_noise/{name}", quantus.Infidelity, name, data[f"maps/{name}"], note=note, **settings)
    out.write("1e-9 absolute and relative: float64, in another order of summation; correlations magnify it")


def robustness(net: nn.Module, data: dict, rng: np.random.Generator) -> None:
    out = Family("robustness", net, data)
    x, y = data["x"], data["y"]
    noise = rng.uniform(-0.2, 0.2, (5, *x.shape)).astype(np.float32)
    perturbed = x + noise
    out.put("noise", noise, note="sample, example, ...: what was added to x")
    out.put(
        "gradient_perturbed",
        np.stack([gradient(net, p, y) for p in perturbed]),
        note="the gradient of logit y at x + noise",
    )
    classes = np.stack([net(torch.from_numpy(p)).argmax(1).numpy() for p in [x, *perturbed]])
    out.put("same_class", classes[1:] == classes[0], note="sample, example: is the predicted class that of x?")
    for name, explain in EXPLAIN.items():
        call = {"explain_func": explain}
        for key, metric in {
            "max_sensitivity": quantus.MaxSensitivity,
            "avg_sensitivity": quantus.AvgSensitivity,
            "local_lipschitz": quantus.LocalLipschitzEstimate,
            "relative_input_stability": quantus.RelativeInputStability,
            "relative_output_stability": quantus.RelativeOutputStability,
        }.items():
            for nan in (False, True):
                suffix = "/nan_when_class_changes" if nan else ""
                settings = {"nr_samples": len(noise), "return_nan_when_prediction_changes": nan}
                settings["perturb_func"] = Given(perturbed)
                out.run(f"{key}/{name}{suffix}", metric, name, None, call=call, **settings)
        for layers in (None, ["pool1"], ["pool2", "dense"]):
            settings = {
                "nr_samples": len(noise),
                "layer_names": layers,
                "return_nan_when_prediction_changes": False,
                "perturb_func": Given(perturbed),
            }
            key = f"relative_representation_stability/{name}/{'+'.join(layers) if layers else 'all'}"
            out.run(key, quantus.RelativeRepresentationStability, name, None, call=call, **settings)
        note = "translated by -9, -6, ..., 12 pixels to the right; the image's minimum comes in"
        out.run(f"continuity/{name}", quantus.Continuity, name, None, call=call, nr_steps=7, note=note)
    out.write("1e-9 relative: float64, in another order of summation")


def randomisation(net: nn.Module, data: dict, _: np.random.Generator) -> None:
    out = Family("randomisation", net, data)
    model = PyTorchModel(net)
    for layer, randomised in model.get_random_layer_generator("independent", 42):
        for key, value in randomised.state_dict().items():
            if key.startswith(layer):
                out.put(f"randomised/{key}", value.numpy().copy())
    for name, explain in EXPLAIN.items():
        call, a = {"explain_func": explain}, data[f"maps/{name}"]
        for order in ("top_down", "bottom_up", "independent"):
            for similarity, magnitude in (
                (correlation_spearman, False),
                (correlation_spearman, True),
                (correlation_pearson, False),
            ):
                key = f"mprt/{name}/{label(order=order, similarity=NAMES[similarity], abs=magnitude)}"
                settings = {"layer_order": order, "similarity_func": similarity, "abs": magnitude}
                out.run(key, quantus.MPRT, name, a, call=call, seed=42, note="row, example", **settings)
        note = "the mean of all rows, 1 for the original network among them"
        out.run(f"mprt_average/{name}", quantus.MPRT, name, a, call=call, return_average_correlation=True, note=note)
        for order in ("bottom_up", "top_down"):
            note = "(H' - H) / H with all layers randomised, H the entropy of 100 bins from the map's minimum to its "
            note += "maximum"
            settings = {"softmax": True, "layer_order": order}  # it refuses logits; the result is of the maps alone
            out.run(f"efficient_mprt/{name}/{order}", quantus.EfficientMPRT, name, a, call=call, note=note, **settings)
        others: list[np.ndarray] = []

        def remember(model: nn.Module, inputs: Any, targets: np.ndarray, explain: Callable = explain) -> np.ndarray:
            others.append(np.asarray(targets))  # noqa: B023
            return explain(model, inputs, targets)

        remember.__name__ = name
        for similarity in (ssim, correlation_spearman, correlation_pearson):
            settings = {"num_classes": CLASSES, "similarity_func": similarity}
            key = f"random_logit/{name}/{NAMES[similarity]}"
            note = "SSIM of the flattened maps, windows of 7 numbers" if similarity is ssim else ""
            out.run(key, quantus.RandomLogit, name, a, call={"explain_func": remember}, note=note, **settings)
        assert all((other == others[0]).all() for other in others)
        if "random_logit_class" not in out.arrays:
            out.put("random_logit_class", others[0], note="the other class, per example")
        assert (out.arrays["random_logit_class"] == others[0]).all()
    out.write("1e-9 absolute: float64, in another order of summation")


def localisation(net: nn.Module, data: dict, rng: np.random.Generator) -> None:
    out = Family("localisation", net, data)
    maps = {
        "random": data["maps/random"],
        "input_x_gradient": data["maps/input_x_gradient"],
        "positive": rng.gamma(0.7, 1, data["x"].shape).astype(np.float32).astype(np.float64),
    }
    mask = np.zeros(data["x"].shape, bool)
    for i, (top, left, height, width) in enumerate(
        ((0, 0, 4, 5), (3, 3, 6, 6), (8, 2, 4, 10), (1, 7, 2, 2), (0, 0, 12, 6), (5, 5, 1, 1))
    ):
        mask[i, 0, top : top + height, left : left + width] = True
    mask[3, 0, 9:, 1:4] = True  # two parts
    out.put("mask", mask)
    out.put("maps/positive", maps["positive"].astype(np.float32))
    quadrants = [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 0, 1, 1), (0, 1, 0, 1)]
    out.put("quadrants", np.array(quadrants), note="example; top left, top right, bottom left, bottom right")
    for name, a in maps.items():
        call = {"s_batch": mask}
        out.run(f"pointing_game/{name}", quantus.PointingGame, name, a, call=call)
        out.run(f"top_k_intersection/{name}/10", quantus.TopKIntersection, name, a, call=call, k=10)
        settings = {"k": 30, "concept_influence": True}
        out.run(f"top_k_intersection/{name}/30,concept", quantus.TopKIntersection, name, a, call=call, **settings)
        note = "" if name == "positive" else "negative relevance is summed, too"
        out.run(f"relevance_mass_accuracy/{name}", quantus.RelevanceMassAccuracy, name, a, call=call, note=note)
        out.run(f"relevance_rank_accuracy/{name}", quantus.RelevanceRankAccuracy, name, a, call=call)
        for key, settings in {
            "signed": {},
            "abs": {"abs": True},
            "positive": {"positive_attributions": True},
            "positive,weighted": {"positive_attributions": True, "weighted": True},
        }.items():
            note = "times size of mask / (4 * 144), 4 being the number of examples less 2" if "weighted" in key else ""
            out.run(
                f"attribution_localisation/{name}/{key}",
                quantus.AttributionLocalisation,
                name,
                a,
                call=call,
                note=note,
                **settings,
            )
        out.run(f"auc/{name}", quantus.AUC, name, a, call=call)
        out.run(f"focus/{name}", quantus.Focus, name, a, call={"custom_batch": quadrants})
        out.run(f"sparseness/{name}", quantus.Sparseness, name, a, abs=True, note="1e-7 is added to |map|")
        note = "|map| / largest |map| of the batch, + 1e-7"
        out.run(f"sparseness_normalised/{name}", quantus.Sparseness, name, a, abs=True, normalise=True, note=note)
        out.run(
            f"complexity/{name}", quantus.Complexity, name, a, abs=True, note="-sum p log(p + 1e-12), p = |map| / sum"
        )
        note = "how many |map| are above eps"
        out.run(f"effective_complexity/{name}", quantus.EffectiveComplexity, name, a, abs=True, eps=0.3, note=note)

    tied = maps["positive"].copy()
    tied[:, 0, 11, 0] = tied[:, 0, 6, 6] = tied.max(axis=(1, 2, 3)) + 1
    empty = mask.copy()
    empty[0] = False
    out.put(
        "tied_peaks", np.array([(11, 0), (6, 6)]), note="(row, column) of maps/positive raised to its maximum + 1, both"
    )
    note = "two equal maxima, see tied_peaks: a hit if any is inside"
    out.run("pointing_game_tied", quantus.PointingGame, "positive", tied, call={"s_batch": mask}, note=note)
    note = "example 0 with an empty mask, which Quantus counts as a hit"
    out.run(
        "pointing_game_empty", quantus.PointingGame, "positive", maps["positive"], call={"s_batch": empty}, note=note
    )
    out.write("1e-10 relative: float64, in another order of summation")


def imputation(net: nn.Module, data: dict, rng: np.random.Generator) -> None:
    out = Family("imputation", net, data)
    images = {
        "grey": data["x"][0],
        "colour": rng.normal(size=(3, 9, 7)).astype(np.float32).astype(np.float64),
    }
    for name, image in images.items():
        _, height, width = image.shape
        out.put(f"image/{name}", image.astype(np.float32), note="(channel, height, width)")
        masks = {
            "few": rng.random((height, width)) < 0.2,
            "most": rng.random((height, width)) < 0.8,
            "all_but_one": np.ones((height, width), bool),
            "block": np.zeros((height, width), bool),
            "corner": np.zeros((height, width), bool),
            "rows": np.zeros((height, width), bool),
            "one": np.zeros((height, width), bool),
            "checkerboard": np.add.outer(np.arange(height), np.arange(width)) % 2 == 0,
        }
        masks["all_but_one"][2, 3] = False
        masks["block"][2:7, 1:6] = True
        masks["corner"][:4, -3:] = True
        masks["rows"][-2:] = True
        masks["one"][4, 4] = True
        for key, mask in masks.items():
            out.put(f"mask/{name}/{key}", mask, note="True is replaced")
            imputed = noisy_linear_imputation(image, np.flatnonzero(mask), noise=0.0)
            out.put(f"imputed/{name}/{key}", imputed, function="noisy_linear_imputation(image, flat indices, noise=0)")
        np.random.seed(3)
        with recorded("randn") as calls:
            noisy = noisy_linear_imputation(image, np.flatnonzero(masks["few"]), noise=0.1)
        out.put(f"imputed_noisy/{name}/few", noisy, function="noisy_linear_imputation(image, flat indices, noise=0.1)")
        draws = calls[0].reshape(len(image), -1)
        out.put(f"imputed_noisy_draws/{name}/few", draws, note="channel, replaced pixel in order of its flat index")
    for percentage in (10, 50, 90):
        top = np.argsort(-data["maps/input_x_gradient"].reshape(EXAMPLES, -1), 1)[:, : int(FEATURES * percentage / 100)]
        imputed = [
            noisy_linear_imputation(image, indices, noise=0.0) for image, indices in zip(data["x"], top, strict=True)
        ]
        note = "the x of network.npz, the most relevant pixels of maps/input_x_gradient replaced"
        out.put(f"road_images/{percentage}", np.stack(imputed), note=note)
    out.write("1e-10 absolute: a direct solution in float64")


def main() -> None:
    rng = np.random.default_rng(SEED)
    net = network()
    weights = fill(net, rng)
    pool = rng.normal(0.3, 1.5, (60, 1, SIZE, SIZE)).astype(np.float32).astype(np.float64)
    with torch.no_grad():  # each class is to be predicted for some
        net.dense.bias -= net(torch.from_numpy(pool)).mean(0).float()
    weights["dense.bias"] = net.dense.bias.detach().numpy().astype(np.float32)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    classes = net(torch.from_numpy(pool)).argmax(1).numpy()
    x = pool[[np.flatnonzero(classes == c)[n] for c, n in ((0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (2, 1))]]
    logits = net(torch.from_numpy(x)).detach().numpy()
    y = logits.argmax(1)
    y[1] = (y[1] + 1) % CLASSES  # one that is not what the network says
    data = {"x": x, "y": y, "logits": logits, "gradient": gradient(net, x, y)}
    data["maps/gradient"] = data["gradient"]
    data["maps/random"] = rng.normal(size=x.shape).astype(np.float32).astype(np.float64)
    data["maps/input_x_gradient"] = x * data["gradient"]
    for key, value in data.items():
        if key.startswith("maps/"):
            assert all(len(np.unique(np.abs(one))) == FEATURES for one in value), "no ties"

    out = Family("network", net, data)
    for name, value in weights.items():
        out.put(f"weights/{name}", value)
    for key in ("x", "maps/random"):
        out.put(key, data[key].astype(np.float32))
    for key in ("y", "logits", "gradient", "maps/input_x_gradient"):
        out.put(key, data[key])
    out.about["layers"] = {"network": [f"{name}: {layer}" for name, layer in net.named_children()]}
    out.write("1e-12 relative: float64")
    print("logits", logits.round(2).tolist(), "y", y.tolist())
    for family in (faithfulness, robustness, randomisation, localisation, imputation):
        family(net, data, rng)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    np.trapz = np.trapezoid
    FOLDER.mkdir(exist_ok=True)
    main()
