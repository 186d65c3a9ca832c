"""Our side: `prepare(job)` compiles a method on a problem and returns the function to be timed."""

import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import measures
import numpy as np
from flax import traverse_util
from jax import lax
from networks import apply_layers
from problems import Problem, load

import jaxplain as jx
from jaxplain import zoo

KEY = 20261123


def versions() -> dict[str, str]:
    modules = {"jaxplain": jx, "jax": jax, "jaxlib": jax.lib, "flax": flax, "numpy": np}
    return {name: module.__version__ for name, module in modules.items()}


def limit_threads(threads: int) -> None:
    """XLA takes as many threads as the process may use, which the worker has limited before this module loads."""


def network(problem: Problem) -> Callable[[Any], Any]:
    """The zoo's own network where there is one (as its users run it), else the layers one by one."""
    name = problem.name.split("-")[0]  # "cnn_maxpool-16": fewer examples of it
    if name in zoo.NAMES:
        params = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, problem.weights), sep="/")
        return lambda xs: zoo.load(name).apply(params, xs)
    weights = jax.tree.map(jnp.asarray, problem.weights)
    return lambda xs: apply_layers(problem.layers, weights, xs)


def _floor(score: Any, _problem: Problem, _settings: dict) -> Any:
    return jax.vmap(jax.grad(score))


def _forward(score: Any, _problem: Problem, _settings: dict) -> Any:
    return jax.vmap(score)


def _gradient(score: Any, _problem: Problem, _settings: dict) -> Any:
    return jax.vmap(jx.gradient(score))


def _integrated_gradients(score: Any, _problem: Problem, settings: dict) -> Any:
    return jax.vmap(jx.integrated_gradients(score, **settings))


def _smoothgrad(score: Any, problem: Problem, settings: dict) -> Any:
    explain = jx.smoothgrad(jx.gradient(score), noise=problem.noise, relative=False, **settings)
    keys = jax.random.split(jax.random.key(KEY), len(problem.x))
    return lambda xs, labels: jax.vmap(explain)(xs, labels, key=keys)


def _smoothgrad_error(score: Any, problem: Problem, settings: dict) -> Any:
    """The Monte-Carlo standard error of each entry of `_smoothgrad`, i.e. the expected distance of independent runs."""
    explain = jx.smoothgrad(jx.gradient(score), noise=problem.noise, relative=False, **settings)
    keys = jax.random.split(jax.random.key(KEY), len(problem.x))
    return lambda xs, labels: jax.vmap(jx.with_info(explain))(xs, labels, key=keys)[1].standard_error


def _guided_backprop(score: Any, _problem: Problem, _settings: dict) -> Any:
    return jax.vmap(jx.guided_backprop(score))


def _deeplift(score: Any, _problem: Problem, _settings: dict) -> Any:
    return jax.vmap(jx.deeplift(score))


def _lrp(score: Any, _problem: Problem, _settings: dict) -> Any:
    return jax.vmap(jx.lrp(score, rules=jx.composites.epsilon_plus_flat()))


def _class_activation_map(explainer: Callable) -> Callable:
    """Maps, 0 for a layer without evidence (NaN under jit). Up-sampled ones are scaled to [0, 1], as the peer's."""

    def method(score: Any, _problem: Problem, settings: dict) -> Any:
        explain = jax.vmap(explainer(score, **settings))

        def run(xs: Any, labels: Any) -> Any:
            maps = jnp.nan_to_num(explain(xs, labels))
            if not settings["upsample"]:
                return maps
            maps = maps - jnp.min(maps, (1, 2), keepdims=True)
            high = jnp.max(maps, (1, 2), keepdims=True)
            return maps / jnp.where(high == 0, 1, high)

        return run

    return method


METHODS = {
    "floor": _floor,
    "forward": _forward,
    "gradient": _gradient,
    "guided_backprop": _guided_backprop,
    "lrp": _lrp,
    "deeplift": _deeplift,
    "integrated_gradients": _integrated_gradients,
    "smoothgrad": _smoothgrad,
    "smoothgrad_error": _smoothgrad_error,
    "grad_cam": _class_activation_map(jx.grad_cam),
    "grad_cam_plus_plus": _class_activation_map(jx.grad_cam_plus_plus),
    "score_cam": _class_activation_map(jx.score_cam),
    "ablation_cam": _class_activation_map(jx.ablation_cam),
    "pixel_flipping": measures.pixel_flipping,
    "road": measures.road,
    "max_sensitivity": measures.max_sensitivity,
    "mprt": measures.mprt,
}


def compile_job(problem: Problem, method: str, settings: dict) -> tuple[Any, tuple, float]:
    """The compiled batched method, its arguments, and the seconds of tracing and compiling."""
    score = jx.logit(network(problem))
    args = (jnp.asarray(problem.x), jnp.asarray(problem.labels))
    settings = dict(settings)
    batch_size = settings.pop("batch_size", None)
    start = time.perf_counter()
    function = METHODS[method](score, problem, settings)
    compiled = jax.jit(function if batch_size is None else in_batches(function, batch_size)).lower(*args).compile()
    return compiled, args, time.perf_counter() - start


def in_batches(function: Callable, batch_size: int) -> Callable:
    """A batched function that runs on `batch_size` examples at a time, so that its data stay in the cache."""

    def run(*arrays: Any) -> Any:
        parts = [a.reshape(-1, batch_size, *a.shape[1:]) for a in arrays]
        out = lax.map(lambda part: function(*part), tuple(parts))
        return out.reshape(-1, *out.shape[2:])

    return run


def prepare(job: dict) -> tuple[Callable[[], Any], dict]:
    compiled, args, seconds = compile_job(load(job["problem"]), job["method"], job["settings"])
    memory = compiled.memory_analysis()
    about = {"compile_seconds": seconds, "temp_bytes": memory.temp_size_in_bytes if memory else None}
    return lambda: jax.block_until_ready(compiled(*args)), about


def to_numpy(result: Any) -> np.ndarray:
    return np.asarray(result)
