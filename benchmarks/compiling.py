"""Costs before the first result (analysis, tracing and lowering, compiling) and memory, next to `jax.grad`."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from problems import PROBLEMS
from side_jaxplain import network

import jaxplain as jx
from jaxplain._analysis.analyze import analyze

TOKENS, WIDTH, HEADS = 32, 64, 4
METHODS: dict[str, Callable[[Any], Any]] = {
    "jax.grad": jax.grad,
    "gradient": jx.gradient,
    "guided_backprop": jx.guided_backprop,
    "lrp": lambda score: jx.lrp(score, rules=jx.composites.attention()),
}


def _norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def _block(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    """One layer of a transformer."""
    q, k, v = (jnp.moveaxis((_norm(x) @ w[name]).reshape(TOKENS, HEADS, -1), 1, 0) for name in "qkv")
    mixed = jax.nn.softmax(q @ k.mT / (WIDTH // HEADS) ** 0.5) @ v
    x = x + jnp.moveaxis(mixed, 0, 1).reshape(TOKENS, WIDTH) @ w["out"]
    return x + jax.nn.gelu(_norm(x) @ w["up"] + w["bias"]) @ w["down"]


def _transformer(depth: int, *, scanned: bool) -> tuple[Callable, tuple]:
    """The score of x and the weights, which are arguments because XLA would spend minutes on slicing constants."""
    keys = iter(jax.random.split(jax.random.key(0), 16))
    shapes = dict.fromkeys(("q", "k", "v", "out"), (WIDTH, WIDTH)) | {
        "up": (WIDTH, 4 * WIDTH),
        "bias": (4 * WIDTH,),
        "down": (4 * WIDTH, WIDTH),
    }
    w = {name: jax.random.normal(next(keys), (depth, *shape)) / shape[0] ** 0.5 for name, shape in shapes.items()}

    def score(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
        if scanned:
            x = lax.scan(lambda x, w: (_block(x, w), None), x, w)[0]
        else:
            for layer in range(depth):
                x = _block(x, {name: value[layer] for name, value in w.items()})
        return x.mean(0)[0]

    return score, (jax.random.normal(next(keys), (TOKENS, WIDTH)), w)


def measure() -> list[dict]:
    cases = {
        f"transformer, {depth} layers, {'scanned' if scanned else 'unrolled'}": _transformer(depth, scanned=scanned)
        for depth, scanned in ((12, True), (50, True), (12, False))
    }
    for name in ("cnn_maxpool", "separable224"):
        problem = PROBLEMS[name]()
        score = jx.logit(network(problem))
        cases[f"{name}, 1 example"] = (lambda x, score=score: score(x, 0)), (jnp.asarray(problem.x[0]),)
    rows = []
    for name, (score, args) in cases.items():
        for method, explainer in METHODS.items():
            program = jax.make_jaxpr(lambda x, score=score, rest=args[1:]: score(x, *rest))(args[0])
            start = time.perf_counter()
            if method in ("guided_backprop", "lrp"):
                analyze(program)
            analysis = time.perf_counter() - start
            start = time.perf_counter()
            lowered = jax.jit(explainer(score)).lower(*args)
            lowering = time.perf_counter() - start
            start = time.perf_counter()
            compiled = lowered.compile()
            rows.append(
                {
                    "network": name,
                    "method": method,
                    "analysis_seconds": analysis if method in ("guided_backprop", "lrp") else None,
                    "lowering_seconds": lowering,
                    "compile_seconds": time.perf_counter() - start,
                    "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
                }
            )
            print(rows[-1], flush=True)
    return rows
