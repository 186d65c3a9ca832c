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
from problems import NORM_EPS, Problem, load

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


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "flatten": lambda x: x.reshape(x.shape[0], -1),
    "global_mean": lambda x: jnp.mean(x, (1, 2)),
    "max_pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
}


def apply_layers(
    layers: list[list[Any]], weights: Any, x: Any, observe: Callable[[str, Any], None] | None = None
) -> Any:
    """`observe` is called with the name and the input of every batch-norm before that is applied."""
    for kind, *rest in layers:
        if kind == "conv":
            x = _conv(x, weights[f"{rest[0]}/kernel"], rest[1])
            x = x + weights[f"{rest[0]}/bias"] if f"{rest[0]}/bias" in weights else x
        elif kind == "dense":
            x = x @ weights[f"{rest[0]}/kernel"] + weights[f"{rest[0]}/bias"]
        elif kind == "batch_norm":
            if observe:
                observe(rest[0], x)
            gamma, beta, mean, var = (weights[f"{rest[0]}/{part}"] for part in ("gamma", "beta", "mean", "var"))
            x = (x - mean) * (gamma / jnp.sqrt(var + NORM_EPS)) + beta
        elif kind == "residual":
            x = x + apply_layers(rest[0], weights, x, observe)
        else:
            x = _PLAIN[kind](x)
    return x


def _conv(x: Any, kernel: Any, stride: int) -> Any:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    numbers, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )


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
    """The Monte-Carlo standard error of `_smoothgrad`, entry by entry: what two independent runs may differ by."""
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
    """Maps, a layer without evidence being 0 (NaN under jit); those of the size of the input are scaled to [0, 1], as pytorch-grad-cam's are."""

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
    """A batched function run on `batch_size` examples after the other: what it needs meanwhile stays in the cache."""

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
