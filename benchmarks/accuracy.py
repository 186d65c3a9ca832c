"""Exactness of integrated gradients at 50 gradients, by quadrature rule: completeness, distance to the exact integral.

For each example, gap = |Σ R − Δf| / |Δf| and distance = Σ|R − reference| / Σ|reference|, where the reference is a
midpoint rule with very many steps. The results are medians and 90th percentiles over the examples.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import PROBLEMS
from side_jaxplain import network

import jaxplain as jx

N_NETS = 40
WIDTHS = (32, 64, 64, 1)  # three layers
NET_REFERENCE = 20_000  # steps
DIGITS = 100
DIGIT_REFERENCE = 2_000  # steps; 20,000 would take ten times the two minutes of this

RULES: dict[str, dict[str, Any]] = {
    "gauss_legendre, 50": {"quadrature": "gauss_legendre"},
    "midpoint, 50": {"quadrature": "midpoint"},
    "trapezoid, 50": {"quadrature": "trapezoid"},
    "right, 50": {"quadrature": "right"},
    "gauss_legendre, 50, complete": {"complete": True},
    "tol=1e-3": {"tol": 1e-3},
}


def _random_nets() -> list[tuple[jax.Array, jax.Array]]:
    """He-scaled kernels and biases of `N_NETS` nets, stacked over nets; float64."""
    rng = np.random.default_rng(20261123)
    return [
        (
            jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in), (N_NETS, fan_in, fan_out))),
            jnp.asarray(rng.normal(0, 0.1, (N_NETS, fan_out))),
        )
        for fan_in, fan_out in itertools.pairwise(WIDTHS)
    ]


def _net_score(activation: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    def score(x: jax.Array, layers: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        for kernel, bias in layers[:-1]:
            x = activation(x @ kernel + bias)
        kernel, bias = layers[-1]
        return (x @ kernel + bias)[0]

    return score


def _one_by_one(explain: Callable[..., Any], args: tuple) -> Any:
    """Each example in its own run, so that `tol` only spends on each what it needs."""
    return jax.jit(lambda args: jax.lax.map(lambda one: jx.with_info(explain)(*one), args))(args)


def _rows(name: str, score: Callable[..., Any], args: tuple, reference_steps: int) -> list[dict]:
    reference_settings = {"n_steps": reference_steps, "quadrature": "midpoint", "chunk_size": 10}
    reference, _ = _one_by_one(jx.integrated_gradients(score, **reference_settings), args)
    reference = np.asarray(reference, np.float64)
    axes = tuple(range(1, reference.ndim))
    rows = []
    for rule, settings in RULES.items():
        maps, info = _one_by_one(jx.integrated_gradients(score, n_steps=50, **settings), args)
        delta = np.abs(np.asarray(info.value - info.baseline_value, np.float64))
        gap = np.abs(np.asarray(info.gap, np.float64)) / delta
        distance = np.abs(np.asarray(maps) - reference).sum(axes) / np.abs(reference).sum(axes)
        row = {"score": name, "rule": rule, "examples": len(gap), "dtype": str(maps.dtype)}
        row["reference_steps"] = reference_steps
        for what, values in (("gap", gap), ("distance", distance), ("steps", np.asarray(info.n_steps))):
            row |= {f"{what}_median": float(np.median(values)), f"{what}_p90": float(np.percentile(values, 90))}
        if info.converged is not None:
            row["converged"] = float(np.mean(info.converged))
        print(
            row["score"], rule, *(f"{key}={row[key]:.2g}" for key in row if key.endswith(("median", "p90"))), flush=True
        )
        rows.append(row)
    return rows


def measure() -> list[dict]:
    x = jnp.asarray(np.random.default_rng(7).normal(size=(N_NETS, WIDTHS[0])))
    rows = []
    for name, activation in (("ReLU net", jax.nn.relu), ("tanh net", jnp.tanh)):
        rows += _rows(name, _net_score(activation), (x, _random_nets()), NET_REFERENCE)
    digits = PROBLEMS["cnn_maxpool"](DIGITS)
    args = (jnp.asarray(digits.x), jnp.asarray(digits.labels))
    return rows + _rows("cnn_maxpool", jx.logit(network(digits)), args, DIGIT_REFERENCE)
