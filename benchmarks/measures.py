"""Our measures of explanations on a problem, set up as Quantus' are in `side_quantus.py`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax
from problems import Problem

import jaxplain as jx
from jaxplain import metrics, zoo

KEY, SEED = 20261127, 20261127  # Quantus' side has the same SEED, so that both get the same maps


def maps(problem: Problem) -> np.ndarray:
    return np.random.default_rng(SEED).normal(size=problem.x.shape).astype(np.float32)


def _network(problem: Problem) -> tuple[zoo.Network, Any]:
    params = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, problem.weights), sep="/")
    return zoo.load(problem.name.split("-")[0]), params


def _over_examples(f: Callable, problem: Problem, at_once: int | None, *given: Any) -> Callable:
    """Examples in groups of `at_once`, so that their data stay in the cache."""
    given = tuple(map(jnp.asarray, given))
    return lambda xs, labels: lax.map(lambda args: f(*args), (*given, xs, labels), batch_size=at_once or len(problem.x))


def pixel_flipping(score: Any, problem: Problem, settings: dict) -> Any:
    measure = metrics.pixel_flipping(score, n_steps=settings["steps"], chunk_size=settings["chunk_size"])
    curve = lambda *args: measure.curve(*args).score[1:]  # Quantus' begins after the first step
    return _over_examples(curve, problem, settings["at_once"], maps(problem))


def road(_score: Any, problem: Problem, settings: dict) -> Any:
    n_pixels = problem.x[0].size
    shares = tuple(int(n_pixels * p / 100) / n_pixels for p in range(10, 100, 10))  # Quantus' pixels, exactly
    net, params = _network(problem)
    is_right = lambda x, label: 1.0 * (jnp.argmax(net.apply(params, x[None])[0]) == label)
    measure = metrics.road(is_right, shares=shares, baseline=metrics.removal.impute(noise=0.0), key=jax.random.key(KEY))
    curve = lambda *args: measure.curve(*args).score
    over = _over_examples(curve, problem, settings["at_once"], maps(problem))
    return lambda xs, labels: jnp.mean(over(xs, labels), 0)


def max_sensitivity(score: Any, problem: Problem, settings: dict) -> Any:
    neighbors = metrics.neighbors.ball(0.2, n_samples=10)
    measure = metrics.max_sensitivity(jx.gradient(score), neighbors=neighbors, chunk_size=settings["chunk_size"])
    keys = jax.random.split(jax.random.key(KEY), len(problem.x))
    return _over_examples(lambda k, x, label: measure(x, label, key=k), problem, settings["at_once"], keys)


def mprt(_score: Any, problem: Problem, settings: dict) -> Any:
    net, params = _network(problem)
    make = lambda params: jx.gradient(jx.logit(lambda xs: net.apply(params, xs)))
    measure = metrics.parameter_randomization(make, absolute=False, key=jax.random.key(KEY))
    return _over_examples(lambda x, label: measure.curve(params, x, label), problem, settings["at_once"])
