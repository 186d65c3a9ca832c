"""Every public function with settings, called well, and values that no setting of that name expects."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jx
from jaxplain import composites, metrics, prototypes, rules

W, V = jnp.sin(jnp.arange(6.0)).reshape(2, 3), jnp.array([1.0, -2.0, 0.5])
X, KEY = jnp.cos(jnp.arange(32.0)).reshape(4, 4, 2), jax.random.key(0)
POOL = jnp.stack([X * 0, X])
MASK = np.zeros((4, 4), bool)
MASK[:2] = True
ROWS = np.arange(16).reshape(4, 4, 1) // 4 + np.zeros((4, 4, 2), int)


def score(x):
    return jnp.mean(jax.nn.relu(x @ W), axis=(0, 1)) @ V


def logits(x, *_):
    return jnp.mean(x, (-3, -2)) @ W


GRADIENT = jx.gradient(score)


class Case(NamedTuple):
    function: Callable[..., Any]
    settings: dict[str, Any]  # that work
    run: Callable[[Any], Any]  # uses what the function returns


def _explain(explain):
    try:
        return explain(X)
    except jx.MissingKeyError:
        return explain(X, key=KEY)


def _measure(measure):
    try:
        return measure(X * 0.5, X)
    except jx.MissingKeyError:
        return measure(X * 0.5, X, key=KEY)


def _rule(rule):
    kind = "layer" if "dense" in rule.kinds else rule.kinds[0]
    return jx.lrp(score, rules=composites.compose(rules.epsilon(), {kind: rule} if kind == "layer" else {}))(X)


def _prototype(**settings):
    return jx.activation_maximization(score, n_steps=2, **settings)(X, key=KEY)


CASES: dict[str, Case] = {}
METHODS = """
gradient saliency sensitivity input_x_gradient taylor integrated_gradients guided_backprop deconvnet deep_taylor
excitation_backprop deeplift ablation shapley_sampling cam grad_cam hires_cam xgrad_cam grad_cam_plus_plus
layer_cam eigen_cam score_cam ablation_cam guided_grad_cam layers
"""
for name in METHODS.split():
    CASES[name] = Case(getattr(jx, name), {"f": score}, _explain)
for name in ("smoothgrad", "smoothgrad_squared", "vargrad"):
    CASES[name] = Case(getattr(jx, name), {"explain": GRADIENT, "n_samples": 2}, _explain)
CASES |= {
    "occlusion": Case(jx.occlusion, {"f": score, "window": 2}, _explain),
    "lrp": Case(jx.lrp, {"f": score, "rules": rules.epsilon()}, _explain),
    "plan": Case(jx.plan, {"f": score, "rules": rules.epsilon()}, _explain),
    "ledger": Case(jx.ledger, {"f": score, "rules": rules.epsilon()}, _explain),
    "expected_gradients": Case(jx.expected_gradients, {"f": score, "references": jx.references(POOL)}, _explain),
    "conductance": Case(jx.conductance, {"f": score, "at": "last activation"}, _explain),
    "split": Case(jx.split, {"f": score, "at": "last activation"}, lambda split: split[0](X)),
    "line_search": Case(jx.line_search, {}, lambda root: jx.taylor(jnp.sum, root=root)(X)),
    "scaled_input": Case(jx.scaled_input, {}, lambda root: jx.taylor(score, root=root)(X)),
    "references": Case(
        jx.references, {"pool": POOL}, lambda pool: _explain(jx.integrated_gradients(score, baseline=pool, n_steps=2))
    ),
    "logit": Case(jx.logit, {"apply": logits}, lambda score: score(X, 1)),
    "check": Case(jx.check, {"apply": logits, "xs": jnp.stack([X, X * 2, X + 1])}, lambda nothing: nothing),
    "batched": Case(jx.batched, {"explain": GRADIENT, "progress": False}, lambda run: run(np.stack([X, X * 2]))),
    "Layout": Case(jx.Layout, {}, lambda layout: jx.grad_cam(score, layout=layout)(X)),
    "activation_maximization": Case(jx.activation_maximization, {"f": score, "n_steps": 2}, lambda a: a(X, key=KEY)),
}
RULES = """
alpha_beta epsilon flat gamma log_softmax norm uniform wsquare zplus proportional_pooling
"""
for name in RULES.split():
    CASES[f"rules.{name}"] = Case(getattr(rules, name), {}, _rule)
CASES["rules.zbox"] = Case(rules.zbox, {"low": -2.0, "high": 2.0}, _rule)
COMPOSITES = """
attention epsilon_alpha2_beta1 epsilon_alpha2_beta1_flat epsilon_plus epsilon_plus_flat excitation_backprop
deep_taylor
"""
for name in COMPOSITES.split():
    CASES[f"composites.{name}"] = Case(getattr(composites, name), {}, lambda c: jx.lrp(score, rules=c)(X))
SCORED = {
    **{key: {} for key in ("completeness", "faithfulness_estimate", "insertion", "monotonicity", "pixel_flipping")},
    **{key: {} for key in ("road", "sensitivity_n")},
    **{key: {"baseline": 0.0} for key in ("non_sensitivity", "monotonicity_correlation")},
    "effective_complexity": {"tolerance": 0.1, "baseline": 0.0},
    **{key: {"subset_size": 3, "n_samples": 4} for key in ("faithfulness_correlation", "infidelity")},
    **{key: {"groups": ROWS, "baseline": 0.0} for key in ("irof", "region_perturbation")},
    "selectivity": {"window": (2, 2), "n_steps": 2},
}
for name, given in SCORED.items():
    CASES[f"metrics.{name}"] = Case(getattr(metrics, name), {"score": score, **given}, _measure)
STABILITIES = """
avg_sensitivity max_sensitivity continuity local_lipschitz_estimate relative_input_stability
"""
for name in STABILITIES.split():
    near = {"explain": GRADIENT, "neighbors": metrics.neighbors.ball(0.1, n_samples=2)}
    CASES[f"metrics.{name}"] = Case(getattr(metrics, name), near, lambda measure: measure(X, key=KEY))
NEIGHBORS = {
    "ball": {"radius": 0.1},
    "gaussian": {"noise": 0.1},
    "ascent": {"radius": 0.1, "n_steps": 2, "n_starts": 1},
    "translations": {"shifts": 1},
}
for name, given in NEIGHBORS.items():
    CASES[f"metrics.neighbors.{name}"] = Case(
        getattr(metrics.neighbors, name),
        given,
        lambda near: metrics.max_sensitivity(GRADIENT, neighbors=near)(X, key=KEY),
    )
for name, given in {"blur": {"sigma": 1.0}, "channel_mean": {}, "impute": {}, "uniform": {}}.items():
    CASES[f"metrics.removal.{name}"] = Case(
        getattr(metrics.removal, name),
        given,
        lambda removal: _measure(metrics.pixel_flipping(score, baseline=removal, n_steps=2)),
    )
for name, given in {"intersection_over_union": {}, "pointing_game": {}, "top_k_intersection": {"k": 3}}.items():
    CASES[f"metrics.{name}"] = Case(getattr(metrics, name), given, lambda measure: measure(X[..., 0], MASK))
CASES["metrics.sufficiency"] = Case(metrics.sufficiency, {}, lambda measure: measure)
for name in ("blur", "diversity", "l2", "lp", "total_variation", "shell"):
    CASES[f"prototypes.{name}"] = Case(
        getattr(prototypes, name), {"strength": 0.1}, lambda p: _prototype(penalties={"p": p})
    )
TRANSFORMS = {
    "crop": {"share": 0.5},
    "jitter": {"pixels": 1},
    "noise": {"sigma": 0.1},
    "rotate": {"degrees": 5},
    "scale": {"low": 0.9, "high": 1.1},
}
for name, given in TRANSFORMS.items():
    CASES[f"prototypes.{name}"] = Case(getattr(prototypes, name), given, lambda t: _prototype(transforms=[t]))
for name, given in {"box": {}, "fourier": {"shape": (4, 4, 2)}}.items():
    CASES[f"prototypes.{name}"] = Case(getattr(prototypes, name), given, lambda p: _prototype(parametrization=p))


class Odd:
    """An object of the user."""


class Traced:
    """Stands for a number that is traced."""


# Values that no setting takes for a number, a flag, a word or an array; and values that some do.
NEVER = {
    "word": "a",
    "number in a string": "1.0",
    "yes": "yes",
    "NaN": float("nan"),
    "complex": 2 + 1j,
    "object": Odd(),
    "bytes": b"a",
    "words": ["a", "b"],
}
SOMETIMES = {
    "None": None,
    "infinity": float("inf"),
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "True": True,
    "NumPy integer": np.int64(2),
    "NumPy float": np.float32(0.5),
    "JAX integer": jnp.array(2),
    "array": jnp.ones(2),
    "empty list": [],
    "empty dictionary": {},
    "tuple": (0, 1),
    "set": {1},
    "99": 99,
    "empty array": np.zeros(0),
    "traced": Traced(),
}
# What is explained, the user's own functions, and data that other tests are about.
DATA = ("key", "f", "score", "explain", "apply", "xs", "pool", "rest", "progress", "kwargs")
ODD = [
    (name, setting, value)
    for name, case in CASES.items()
    for setting, value in itertools.product(inspect.signature(case.function).parameters, {**NEVER, **SOMETIMES})
    if setting not in DATA
]


def attempt(name: str, setting: str, value: Any) -> Any:
    case = CASES[name]

    def run(value):
        return case.run(case.function(**{**case.settings, setting: value}))

    return jax.jit(lambda v: (run(v), 0)[1])(1.0) if isinstance(value, Traced) else run(value)
