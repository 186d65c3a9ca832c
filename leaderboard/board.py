"""The methods, metrics and left-out cells of the leaderboard, as data. Nothing runs here."""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jaxplain as jx
from jaxplain._types import Explain, Score
from jaxplain.metrics import (
    attribution_auc,
    completeness,
    complexity,
    continuity,
    energy_inside,
    faithfulness_correlation,
    infidelity,
    insertion,
    max_sensitivity,
    parameter_randomization,
    pixel_flipping,
    pointing_game,
    random_logit,
    relevance_rank_accuracy,
    road,
    selectivity,
    sensitivity_n,
    sparseness,
)
from jaxplain.metrics.controls import greedy
from jaxplain.metrics.neighbors import ball, translations
from jaxplain.metrics.removal import blur, channel_mean, impute, uniform
from leaderboard.controls import noise
from leaderboard.examples import Examples
from tour.rows import rows_for
from tour.spec import SCORE, Given, Spec, spec


class Method(NamedTuple):
    """A method; its spec is a call with `score` and `background`."""

    name: str
    spec: Spec


MadeFrom: TypeAlias = Literal["score", "explain", "make_explain", "attribution"]


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric with its settings.

    Attributes:
        name: Name in tables.
        good: Which end is good.
        spec: The call that makes the measure, without its first argument; perhaps with the `explain` of a method.
        evaluations: Number of evaluations of the score for one example.
        explanations: Number of explanations for one example, besides the map that is measured.
        family: Heading in tables.
        on: Set of examples.
        of: The score that is measured.
        asks_once: Whether its evaluations only depend on its draws, so that they are made once for all methods.
    """

    name: str
    good: Literal["low", "high"]
    spec: Spec
    evaluations: int = 0
    explanations: int = 0
    family: str = ""
    on: str = "digits"
    of: str = "logit"
    asks_once: bool = False

    @property
    def explained(self) -> str:
        """The score that is explained. A probability is explained by its logit, as is usual for classifiers."""
        return "logit" if self.of == "probability" else self.of

    @property
    def made_from(self) -> MadeFrom:
        """The first argument of its function; "attribution" where a finished measure reads the map alone."""
        names = list(inspect.signature(self.spec.function).parameters)
        return names[0] if names and names[0] in ("score", "explain", "make_explain") else "attribution"  # type: ignore[return-value]

    @property
    def recomputes(self) -> bool:
        """Whether it explains again with every step, for each method on its own."""
        return Given("explain") in self.spec.settings.values()

    @property
    def reads_maps_alone(self) -> bool:
        """Whether it can be measured for all methods at once."""
        return self.made_from in ("score", "attribution") and not self.recomputes

    @property
    def text(self) -> str:
        return f"{self.spec!r} of {self.of}, explained by {self.explained}"

    def matches(self, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(self.name, p) or fnmatchcase(self.family, p) for p in patterns)


_PIXELS, _PATCHES, _BLUR = spec(jx.patches, 1, 1), spec(jx.patches, 4, 4), spec(blur, 5.0)
_BLACK_PATCHES = {"groups": _PATCHES, "baseline": 0.0}
_SHIFTS = ([-2, 0, 2], [-2, 0, 2])
_NEAR = {"neighbors": spec(ball, 0.02, n_samples=10)}
_SHIFTED = {"neighbors": spec(translations, _SHIFTS)}
_SETS = (0.05, 0.2, 0.4, 0.6, 0.8)

_faithfulness = partial(Metric, family="faithfulness")
_complexity = partial(Metric, family="complexity")
_axioms = partial(Metric, family="axioms")
_localization = partial(Metric, family="localization", on="scenes")
_robustness = partial(Metric, family="robustness", on="some digits")
_randomization = partial(Metric, family="randomization", on="some digits")

# A new metric adds one line here.
METRICS: tuple[Metric, ...] = (
    _faithfulness("flipping, black", "low", spec(pixel_flipping, **_BLACK_PATCHES), 50),
    _faithfulness("flipping, blur", "low", spec(pixel_flipping, groups=_PATCHES, baseline=_BLUR), 50),
    _faithfulness("ROAD", "low", spec(road, shares=(0.1, 0.3, 0.5, 0.7, 0.9)), 5),
    _faithfulness("insertion, blur", "high", spec(insertion, groups=_PATCHES, baseline=_BLUR), 50),
    _faithfulness(
        "correlation",
        "high",
        spec(faithfulness_correlation, subset_size=10, **_BLACK_PATCHES, n_samples=100),
        101,
        asks_once=True,
    ),
    _faithfulness(
        "sensitivity-n", "high", spec(sensitivity_n, shares=_SETS, **_BLACK_PATCHES, n_samples=40), 201, asks_once=True
    ),
    _faithfulness("infidelity", "low", spec(infidelity, noise=0.05, n_samples=100, scale=True), 101, asks_once=True),
    _complexity("sparseness", "high", spec(sparseness)),
    _complexity("complexity", "low", spec(complexity)),
    _axioms("completeness", "low", spec(completeness, baseline=0.0), 2, asks_once=True),
    _localization("pointing game", "high", spec(pointing_game)),
    _localization("energy inside", "high", spec(energy_inside)),
    _localization("rank accuracy", "high", spec(relevance_rank_accuracy)),
    _localization("AUC", "high", spec(attribution_auc)),
    _robustness("max sensitivity", "low", spec(max_sensitivity, **_NEAR), explanations=11),
    _robustness("continuity", "low", spec(continuity, **_SHIFTED, normalize=True), explanations=9),
    _randomization(
        "random weights", "low", spec(parameter_randomization, order="cascading", similarity="spearman"), explanations=6
    ),
    _randomization("random class", "low", spec(random_logit, n_classes=10, similarity="ssim"), explanations=2),
)


def protocols() -> tuple[Metric, ...]:
    """Flipping as papers and tutorials have done it, to see which of three methods is the most selective, and when."""
    removals = {
        "black": 0.0,
        "mean": spec(channel_mean),
        "blur": _BLUR,
        "noise": spec(uniform, 0.0, 1.0),
        "imputed": spec(impute),
    }
    recompute: dict[str, dict[str, Any]] = {"static": {}, "recomputed": {"recompute": Given("explain")}}
    scores = ("relu(logit)", "logit", "probability")
    groups = {"pixels": _PIXELS, "patches": _PATCHES}
    found = []

    def add(words: tuple[str, str, str, str, str], flipping: Spec, n_steps: int) -> None:
        ranking, order, of, *_ = words
        good: Literal["low", "high"] = "low" if order == "most" else "high"
        explanations = n_steps + 1 if ranking == "recomputed" else 0
        name = ", ".join(words)
        metric = Metric(
            name, good, flipping, n_steps + 1, explanations, family="protocols", on="protocol digits", of=of
        )
        found.append(metric)

    for ranking, order, of, unit, removal in itertools.product(recompute, ("most", "least"), scores, groups, removals):
        settings = {"order": order, "groups": groups[unit], "baseline": removals[removal], "n_steps": 49}
        add((ranking, order, of, unit, removal), spec(pixel_flipping, **settings, **recompute[ranking]), 49)
    for ranking, of in itertools.product(recompute, scores):  # the tutorial's own protocol: recomputed, relu(logit)
        windows = spec(selectivity, window=(4, 4), n_steps=19, **recompute[ranking])
        add((ranking, "most", of, "windows", "black"), windows, 19)
    return tuple(found)


PROTOCOLS = protocols()


class Exclusion(NamedTuple):
    """Cells that are left out.

    Attributes:
        methods: Globs of names.
        metrics: Globs of names or families.
        why: The reason, as the page gives it.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    why: str


# Maps in units of the score. Others are slopes, absolute slopes, or only show where something is.
_PATHS = ("simple Taylor", "integrated*", "IG*", "expected*", "LRP*", "deep Taylor", "DeepLIFT*")
_REMOVALS = ("occlusion", "ablation", "Shapley*")
IN_UNITS_OF_F = ("input × gradient", *_PATHS, *_REMOVALS, "input × random")
_CAMS = ("Grad-CAM*", "HiResCAM")
_SLOPES = ("gradient", "saliency", "sensitivity", "guided*", "deconvolution", "*SmoothGrad", "VarGrad")
_NUMBERS_MATTER = ("correlation", "sensitivity-n", "infidelity", "complexity", "axioms", "localization")

EXCLUDED: tuple[Exclusion, ...] = (
    Exclusion(
        ("greedy",),
        (*_NUMBERS_MATTER, "robustness", "randomization"),
        "its numbers are turns, not amounts: it shows what removal alone can reach",
    ),
    Exclusion(("greedy",), ("*blur*", "*ROAD*"), "it asks the score under black patches"),
    Exclusion(
        ("IG, error*", "Shapley*"),
        ("robustness", "randomization"),
        "too expensive: hundreds of evaluations or gradients, explained up to 11 times",
    ),
    Exclusion(
        (*IN_UNITS_OF_F, "excitation*", *_CAMS, "guided Grad-CAM"),
        ("infidelity",),
        "not a slope of f: infidelity compares R · noise with the change of f",
    ),
    Exclusion(
        ("random", "input × random", *_SLOPES, "excitation*", *_CAMS, "occlusion", "ablation"),
        ("axioms",),
        "claims no sum",
    ),
    Exclusion(
        ("expected gradients", "DeepLIFT, 20*"),
        ("axioms",),
        "sums to the difference from its references, not from black",
    ),
    Exclusion(
        ("LRP*", "deep Taylor", "simple Taylor"),
        ("axioms",),
        "claims to share out f(x), or leaves a residual: not f(x) − f(black)",
    ),
    Exclusion(
        ("gradient", "SmoothGrad"),
        ("localization",),
        "its sign is not evidence; saliency and squared SmoothGrad are measured",
    ),
)


def why_not(method: str, metric: Metric) -> str | None:
    """Why this cell is left out, or None."""
    for entry in EXCLUDED:
        if any(fnmatchcase(method, p) for p in entry.methods) and metric.matches(entry.metrics):
            return entry.why
    return None


CONTROLS = (
    Method("random", spec(noise, SCORE)),
    Method("input × random", spec(noise, SCORE, times_input=True)),
    Method("greedy", spec(greedy, SCORE, groups=_PATCHES)),
)


# The three methods of the tutorial, and a control.
PROTOCOL_METHODS = (
    Method("sensitivity", spec(jx.sensitivity, SCORE)),
    Method("Taylor (x·∇f)", spec(jx.input_x_gradient, SCORE)),  # simple Taylor at root 0, on a network without biases
    Method("deep Taylor", spec(jx.deep_taylor, SCORE, low=0.0, high=1.0)),
    CONTROLS[0],
)


def methods(examples: Examples) -> tuple[Method, ...]:
    """The methods of the tour that apply to these examples, and the controls."""
    rows = rows_for(examples.score("logit"), examples.x[0])
    return (*(Method(row.name, row.method) for row in rows), *CONTROLS)


def make(method: Method, examples: Examples, score: Score) -> Explain:
    """The explainer of a score by a method."""
    return method.spec(score=score, background=examples.background)
