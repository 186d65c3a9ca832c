"""The tour: ten held-out digits explained by every method, a prototype of each class, one table. `python -m tour`."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxplain as jx
from jaxplain._types import Explain
from tour.rows import rows_for


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        name: Name of the method.
        gradients: Gradients of the score for one example.
        evaluations: Further evaluations of the score for one example.
        gap: Median completeness gap relative to max(|Δf|, Σ|attribution|), or None.
        seconds: Seconds for 1,000 digits.
    """

    name: str
    gradients: float
    evaluations: float
    gap: float | None
    seconds: float


def prototypes(network: jx.zoo.Network) -> tuple[dict[str, Any], float]:
    """Images of the network's prototype of each class, without and with a prior; and seconds per prototype with one."""
    score = jx.logit(network, of="log_prob")
    decode = jx.zoo.load_expert("vae").decode
    jitter, noise = jx.prototypes.jitter(2), jx.prototypes.noise(0.3)
    in_pixels = {"parametrization": jx.prototypes.box(0, 1)}
    in_code_space = {
        "parametrization": jx.prototypes.decoder(decode),
        "code_penalties": {"prior": jx.prototypes.shell()},
        "transforms": (jitter, noise),
    }
    pixels = jnp.full((1, 10, 28, 28, 1), 0.1)
    codes = jax.random.normal(jax.random.key(0), (4, 10, 16))
    images = {}
    for name, starts, settings in (
        ("no prior", pixels, in_pixels),
        ("survives movements", pixels, in_pixels | {"transforms": (jitter, noise)}),
        ("code space", codes, in_code_space),
    ):
        over_classes = jax.vmap(jx.activation_maximization(score, **settings))
        maximize = jax.jit(jax.vmap(over_classes, in_axes=(0, None)))
        keys = jax.random.split(jax.random.key(1), starts.shape[:2])
        found, seconds = _timed(maximize, starts, jnp.arange(10), key=keys)
        best = jnp.argsort(-found.require_finite().score, axis=0)[:2]  # not every start succeeds
        for rank, x in enumerate(jnp.take_along_axis(found.x, best[..., None, None, None], 0), start=1):
            images[f"{name}, {rank}" if len(best) > 1 else name] = x
    return images, seconds / found.score.size


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tour", description=__doc__)
    parser.add_argument("--network", default="cnn_maxpool", choices=jx.zoo.NAMES)
    parser.add_argument("--train", action="store_true", help="train the network here instead of loading its weights")
    parser.add_argument("--digits", type=int, default=64, help="how many digits each method is timed on (at least 10)")
    parser.add_argument("--output", type=Path, default=Path("tour.png"))
    options = parser.parse_args(arguments)

    data = jx.datasets.mnist()
    network = jx.zoo.train(options.network) if options.train else jx.zoo.load(options.network)
    accuracy = jx.zoo.accuracy(network, data.x_test, data.y_test)
    print(f"{network.name}: {100 * accuracy:.1f} % of the 1,000 held-out digits right\n")

    images, labels = _ten_first(data.x_test, data.y_test, max(options.digits, 10))
    score = jx.logit(network)
    maps, table = {}, []
    keys = jax.random.split(jax.random.key(0), len(images))
    for row in (bar := tqdm(rows_for(score, images[0]), unit="method")):
        bar.set_postfix_str(row.name)
        explain = row.method(score=score, background=data.x_train[:100])
        attribution, info, seconds = _explain(explain, images, labels, keys)
        maps[row.name] = attribution[:10]
        table.append(_line(row.name, info, attribution, 1000 * seconds / len(images)))
    examples, seconds = prototypes(network)
    table.append(Line("prototype of a class", 256.0, 0.0, None, 1000 * seconds))
    _print(table, len(images))

    figure = jx.plot.grid(maps, images[:10], titles=[f"digit {label}" for label in labels[:10]])
    figure.savefig(options.output, dpi=200, bbox_inches="tight", pad_inches=0.05)
    second = options.output.with_stem(f"{options.output.stem}_prototypes")
    classes = [f"digit {c}" for c in range(10)]
    figure = jx.plot.images(examples, titles=classes, suptitle="What the network looks for: activation maximization")
    figure.savefig(second, dpi=200, bbox_inches="tight", pad_inches=0.05)
    print(f"\nThe pictures: {options.output}, {second}")


def _ten_first(images: np.ndarray, labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` examples that start with the first of each class."""
    first = [int(np.flatnonzero(labels == c)[0]) for c in range(10)]
    rest = [i for i in range(len(labels)) if i not in first]
    order = np.array(first + rest)[:n]
    return images[order], labels[order]


def _explain(explain: Explain, images: Any, labels: Any, keys: jax.Array) -> tuple[Any, jx.Info, float]:
    """Attributions and info of all images, and the seconds of a second, compiled run."""
    run = jax.jit(jax.vmap(lambda x, y, k: jx.with_info(explain)(x, y, key=k)))
    (attribution, info), seconds = _timed(run, images, labels, keys)
    return np.asarray(attribution), info, seconds


def _timed(run: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """The result of `run`, and the seconds of a second call."""
    jax.block_until_ready(run(*args, **kwargs))
    start = time.perf_counter()
    out = jax.block_until_ready(run(*args, **kwargs))
    return out, time.perf_counter() - start


def _line(name: str, info: jx.Info, attribution: np.ndarray, seconds: float) -> Line:
    gradients, evaluations = (0.0 if n is None else float(np.mean(n)) for n in (info.n_gradients, info.n_evaluations))
    gap = None
    if info.gap is not None and info.layer is None:  # the gap of a layer's map is not about the sum over pixels
        delta = np.asarray(info.value) - (0 if info.baseline_value is None else np.asarray(info.baseline_value))
        size = np.maximum(np.abs(delta), np.abs(attribution).sum(axis=(1, 2, 3)))
        gap = float(np.nanmedian(np.abs(np.asarray(info.gap)) / size))
    return Line(name, gradients, evaluations, gap, seconds)


def _print(table: list[Line], n: int) -> None:
    print(f"{'method':<22} {'gradients':>10} {'evaluations':>12} {'s / 1,000 digits':>17} {'completeness gap':>17}")
    for name, gradients, evaluations, gap, seconds in table:
        shown = "–" if gap is None else f"{gap:.1e}"
        print(f"{name:<22} {gradients:>10.0f} {evaluations:>12.0f} {seconds:>17.2f} {shown:>17}")
    print(
        f"\nGradients and further evaluations of the score: per example. Seconds: compiled, on {n} digits.\n"
        "Gap: median of |Σ R − Δf| / max(|Δf|, Σ|R|); – for methods that do not claim any sum."
    )
