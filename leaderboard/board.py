"""What the leaderboard measures: examples, methods, metrics, and what is left out and why. All of it is data; nothing runs here."""

import ast
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import jaxplain as jx
import tour
from jaxplain.metrics._axioms import completeness
from jaxplain.metrics._complexity import complexity, sparseness
from jaxplain.metrics._faithfulness import faithfulness_correlation, infidelity, sensitivity_n
from jaxplain.metrics._flipping import insertion, pixel_flipping, road, selectivity
from jaxplain.metrics._localization import attribution_auc, energy_inside, pointing_game, relevance_rank_accuracy
from jaxplain.metrics._randomization import parameter_randomization, random_logit
from jaxplain.metrics._robustness import continuity, max_sensitivity
from jaxplain.metrics.controls import greedy
from jaxplain.metrics.neighbors import ball, translations
from jaxplain.metrics.removal import blur, channel_mean, impute, uniform
from leaderboard.controls import noise


@dataclass(frozen=True, eq=False)
class Spec:
    """A call that can be made and read: `Spec(blur, 5.0)()` is `blur(5.0)`, and so is its text."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    settings: dict[str, Any]

    def __call__(self, *first: Any, **more: Any) -> Any:
        args = [a() if isinstance(a, Spec) else a for a in self.args]
        settings = {name: a() if isinstance(a, Spec) else a for name, a in self.settings.items()}
        return self.function(*first, *args, **settings, **more)

    def __repr__(self) -> str:
        words = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.settings.items())]
        return f"{self.function.__name__}({', '.join(words)})"


def spec(function: Callable[..., Any], *args: Any, **settings: Any) -> Spec:
    return Spec(function, args, settings)


@dataclass(frozen=True, eq=False)
class Examples:
    """A set of examples and the network that sees them; `background` are training examples for methods that need references."""

    network: jx.zoo.Network
    x: np.ndarray
    y: np.ndarray
    background: np.ndarray
    masks: np.ndarray | None = None

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all of it, the weights too."""
        found = hashlib.sha256(self.network.name.encode())
        arrays = (self.x, self.y, self.background, self.masks, *jax.tree.leaves(self.network.params))
        for array in (np.asarray(a) for a in arrays if a is not None):
            found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        return found.hexdigest()[:16]

    def score(self, of: str, params: Any = None) -> Callable[..., jax.Array]:
        """The score `of` the class, perhaps with other weights."""
        apply = partial(self.network.apply, self.network.params if params is None else params)
        logit = jx.logit(apply)
        if of == "relu(logit)":
            return lambda x, label: jax.nn.relu(logit(x, label))
        return jx.logit(apply, of="prob") if of == "probability" else logit


def digits(network: str, n: int) -> Examples:
    """The first `n` of the 1,000 held-out digits."""
    data = jx.datasets.mnist()
    return Examples(jx.zoo.load(network), data.x_test[:n], data.y_test[:n], data.x_train[:100])


def scenes(n: int) -> Examples:
    """Cluttered scenes of held-out digits, those of chapter 4.2, and the masks of their digits."""
    data = jx.datasets.mnist()
    held_out = partial(jx.datasets.cluttered_mnist, images=data.x_test, labels=data.y_test)
    found = jax.jit(jax.vmap(held_out))(jax.random.split(jax.random.key(41), n))
    training = partial(jx.datasets.cluttered_mnist, images=data.x_train, labels=data.y_train)
    background = jax.jit(jax.vmap(training))(jax.random.split(jax.random.key(42), 100)).image
    arrays = map(np.asarray, (found.image, found.labels[:, 0], background, found.digit_masks[:, 0]))
    return Examples(jx.zoo.load("gap_cluttered"), *arrays)


@dataclass(frozen=True, eq=False)
class Method:
    """A method, and what one explanation costs: gradients of the score, and evaluations for an image of so many 4 × 4 patches."""

    name: str
    make: Callable[[Callable[..., Any], np.ndarray], Callable[..., Any]]  # score, background → explain
    text: str  # what decides its numbers
    gradients: int
    evaluations: Callable[[int], int]


Made = Literal["score", "recompute", "nothing", "masks", "explain", "weights"]


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric with its settings, what it is made from, which end is good, and what it costs for one example."""

    name: str
    family: str
    on: str  # which set of examples
    made_from: Made
    good: Literal["low", "high"]
    spec: Spec
    evaluations: int = 0  # of the score
    explanations: int = 0  # beside that of the map
    of: str = "logit"  # the score
    asks_once: bool = False  # what it asks the score depends on the draws alone, and is asked once for all methods

    @property
    def explained(self) -> str:
        """The score that is explained. A probability is explained by its logit, as classifiers are."""
        return "logit" if self.of == "probability" else self.of

    @property
    def reads_maps_alone(self) -> bool:
        """Then it can be made for all methods at once."""
        return self.made_from in ("score", "nothing", "masks")

    @property
    def text(self) -> str:
        return f"{self.spec!r} of {self.of}, made from {self.made_from}"

    def matches(self, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(self.name, p) or fnmatchcase(self.family, p) for p in patterns)


_PIXELS, _PATCHES, _BLUR = spec(jx.patches, 1, 1), spec(jx.patches, 4, 4), spec(blur, 5.0)
_PLACES = ([-2, 0, 2], [-2, 0, 2])

# A new metric adds one line here.
METRICS: tuple[Metric, ...] = (
    Metric("flipping, black", "faithfulness", "digits", "score", "low", spec(pixel_flipping, groups=_PATCHES, baseline=0.0), 50),
    Metric("flipping, blur", "faithfulness", "digits", "score", "low", spec(pixel_flipping, groups=_PATCHES, baseline=_BLUR), 50),
    Metric("ROAD", "faithfulness", "digits", "score", "low", spec(road, shares=(0.1, 0.3, 0.5, 0.7, 0.9)), 5),
    Metric("insertion, blur", "faithfulness", "digits", "score", "high", spec(insertion, groups=_PATCHES, baseline=_BLUR), 50),
    Metric("correlation", "faithfulness", "digits", "score", "high", spec(faithfulness_correlation, subset_size=10, groups=_PATCHES, baseline=0.0, n_samples=100), 101, asks_once=True),
    Metric("sensitivity-n", "faithfulness", "digits", "score", "high", spec(sensitivity_n, shares=(0.05, 0.2, 0.4, 0.6, 0.8), groups=_PATCHES, baseline=0.0, n_samples=40), 201, asks_once=True),
    Metric("infidelity", "faithfulness", "digits", "score", "low", spec(infidelity, noise=0.05, n_samples=100, scale=True), 101, asks_once=True),
    Metric("sparseness", "complexity", "digits", "nothing", "high", spec(sparseness)),
    Metric("complexity", "complexity", "digits", "nothing", "low", spec(complexity)),
    Metric("completeness", "axioms", "digits", "score", "low", spec(completeness, baseline=0.0), 2, asks_once=True),
    Metric("pointing game", "localization", "scenes", "masks", "high", spec(pointing_game)),
    Metric("energy inside", "localization", "scenes", "masks", "high", spec(energy_inside)),
    Metric("rank accuracy", "localization", "scenes", "masks", "high", spec(relevance_rank_accuracy)),
    Metric("AUC", "localization", "scenes", "masks", "high", spec(attribution_auc)),
    Metric("max sensitivity", "robustness", "some digits", "explain", "low", spec(max_sensitivity, neighbors=spec(ball, 0.02, n_samples=10)), explanations=11),
    Metric("continuity", "robustness", "some digits", "explain", "low", spec(continuity, neighbors=spec(translations, _PLACES), normalize=True), explanations=9),
    Metric("random weights", "randomization", "some digits", "weights", "low", spec(parameter_randomization, order="cascading", similarity="spearman"), explanations=6),
    Metric("random class", "randomization", "some digits", "explain", "low", spec(random_logit, n_classes=10, similarity="ssim"), explanations=2),
)  # fmt: skip


def protocols() -> tuple[Metric, ...]:
    """Flipping in every way that papers and tutorials have flipped: which of three methods is the most selective, and under what?"""
    removals = {"black": 0.0, "mean": spec(channel_mean), "blur": _BLUR, "noise": spec(uniform, 0.0, 1.0), "imputed": spec(impute)}  # fmt: skip
    made: dict[str, Made] = {"static": "score", "recomputed": "recompute"}
    scores = ("relu(logit)", "logit", "probability")
    found = []
    for ranking, order, of, groups, removal in itertools.product(
        made, ("most", "least"), scores, ("pixels", "patches"), removals
    ):
        labels = _PATCHES if groups == "patches" else _PIXELS
        flipping = spec(pixel_flipping, order=order, groups=labels, baseline=removals[removal], n_steps=49)
        found.append((ranking, order, of, groups, removal, flipping, 49))
    for ranking, of in itertools.product(made, scores):  # recomputed, relu(logit): the tutorial's own
        found.append((ranking, "most", of, "windows", "black", spec(selectivity, window=(4, 4), n_steps=19), 19))
    return tuple(
        Metric(", ".join((ranking, order, of, groups, removal)), "protocols", "protocol digits", made[ranking], "low" if order == "most" else "high",
               flipping, steps + 1, steps if ranking == "recomputed" else 0, of)
        for ranking, order, of, groups, removal, flipping, steps in found
    )  # fmt: skip


PROTOCOLS = protocols()


class Exclusion(NamedTuple):
    methods: tuple[str, ...]  # globs
    metrics: tuple[str, ...]  # globs of names or families
    why: str


# Maps in units of the score; the others are slopes, |slopes|, or tell only where.
IN_UNITS_OF_F = ("input × gradient", "simple Taylor", "integrated*", "IG*", "expected*", "LRP*", "deep Taylor", "DeepLIFT*", "occlusion", "ablation", "Shapley*", "input × random")  # fmt: skip

EXCLUDED: tuple[Exclusion, ...] = (
    Exclusion(("greedy",), ("correlation", "sensitivity-n", "infidelity", "complexity", "axioms", "localization", "robustness", "randomization"),
              "its numbers are turns, not amounts: it shows what removal alone can reach"),
    Exclusion(("greedy",), ("*blur*", "*ROAD*"), "it asks the score under black patches"),
    Exclusion(("IG, error*", "Shapley*"), ("robustness", "randomization"), "too dear: hundreds of evaluations or gradients, explained up to 11 times"),
    Exclusion((*IN_UNITS_OF_F, "excitation*", "Grad-CAM*", "HiResCAM", "guided Grad-CAM"), ("infidelity",), "not a slope of f: infidelity compares R · noise with the change of f"),
    Exclusion(("random", "input × random", "gradient", "saliency", "sensitivity", "excitation*", "Grad-CAM*", "HiResCAM", "guided*", "deconvolution", "*SmoothGrad", "VarGrad", "occlusion", "ablation"),
              ("axioms",), "claims no sum"),
    Exclusion(("expected gradients", "DeepLIFT, 20*"), ("axioms",), "sums to the difference from its references, not from black"),
    Exclusion(("LRP*", "deep Taylor", "simple Taylor"), ("axioms",), "claims to share out f(x), or leaves a residual: not f(x) − f(black)"),
    Exclusion(("gradient", "SmoothGrad"), ("localization",), "its sign is no evidence; saliency and squared SmoothGrad are measured"),
)  # fmt: skip

# What one explanation costs: gradients, and evaluations for an image of n 4 × 4 patches. All other methods of the tour take 1 gradient.
_COSTS: dict[str, tuple[int, Callable[[int], int]]] = {
    "simple Taylor": (2, lambda _: 73),
    "integrated gradients": (50, lambda _: 0),
    "IG, error*": (100, lambda _: 0),  # about: as many as the slowest example of a batch needs
    "expected gradients": (50, lambda _: 0),
    "LRP*": (2, lambda _: 0),
    "deep Taylor": (2, lambda _: 0),
    "excitation backprop": (2, lambda _: 0),
    "DeepLIFT RevealCancel": (3, lambda _: 0),
    "DeepLIFT, 20*": (20, lambda _: 0),
    "occlusion": (0, lambda n: 1 + (2 * math.isqrt(n) - 1) ** 2),
    "ablation": (0, lambda n: 1 + n),
    "Shapley*": (0, lambda n: 2 + 10 * (n - 1)),
    "guided Grad-CAM": (2, lambda _: 0),
    "*SmoothGrad": (50, lambda _: 0),
    "VarGrad": (50, lambda _: 0),
    "*random": (0, lambda _: 1),
    "greedy": (0, lambda n: n * n),
}


def why_not(method: str, metric: Metric) -> str | None:
    """Why this cell is left out, or None."""
    for entry in EXCLUDED:
        if any(fnmatchcase(method, p) for p in entry.methods) and metric.matches(entry.metrics):
            return entry.why
    return None


def methods(examples: Examples) -> tuple[Method, ...]:
    """Those of the tour, and the controls."""
    texts = _texts_of_tour()

    def of_tour(name: str) -> Method:
        def make(score: Callable[..., Any], background: np.ndarray) -> Callable[..., Any]:
            return next(row.explain for row in tour.rows(score, background) if row.name == name)

        return _method(name, make, texts[name])

    names = [row.name for row in tour.rows(examples.score("logit"), examples.background)]
    controls = {
        "random": spec(noise),
        "input × random": spec(noise, times_input=True),
        "greedy": spec(greedy, groups=_PATCHES),
    }
    return (*map(of_tour, names), *(_listed(name, made) for name, made in controls.items()))


def protocol_methods() -> tuple[Method, ...]:
    """The three methods of the tutorial, and a control."""
    made = {
        "sensitivity": spec(jx.sensitivity),
        "Taylor (x·∇f)": spec(jx.input_x_gradient),  # simple Taylor with the root at 0, on a network without biases
        "deep Taylor": spec(jx.deep_taylor, low=0.0, high=1.0),
        "random": spec(noise),
    }
    return tuple(_listed(name, call) for name, call in made.items())


def _listed(name: str, made: Spec) -> Method:
    return _method(name, lambda score, _: made(score), repr(made))


def _method(name: str, make: Callable[..., Any], text: str) -> Method:
    found = (cost for pattern, cost in _COSTS.items() if fnmatchcase(name, pattern))
    return Method(name, make, text, *next(found, (1, lambda _: 0)))


def _texts_of_tour() -> dict[str, str]:
    """How the tour sets up each method: its expression in `tour.rows`, after those of the names in it."""
    tree = ast.parse(Path(tour.__file__).read_text())
    nodes = [n for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "rows" for n in ast.walk(f)]
    assigned: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            targets, values = [n.elts if isinstance(n, ast.Tuple) else [n] for n in (target, value)]
            for name, made in zip(targets, values, strict=True):
                assigned[ast.unparse(name)] = f"{ast.unparse(name)} = {ast.unparse(made)}"
    found = {}
    for call in nodes:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Row":
            name, made = call.args
            used = {n.id for n in ast.walk(made) if isinstance(n, ast.Name)}
            words = [text for variable, text in assigned.items() if variable in used]
            found[ast.literal_eval(name)] = "; ".join((*words, ast.unparse(made)))
    return found
