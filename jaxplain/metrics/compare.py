"""Methods × metrics over many examples: each map is computed once, every number has an interval."""

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import scipy.stats

from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import require_callable
from jaxplain.batch import batched


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: for each metric and method one number per example. `print` it for a table in Markdown.

    Attributes:
        values: metric → method → array of one number per example, NaN (or infinite) where the metric has none.
    """

    values: dict[str, dict[str, np.ndarray]]

    def mean(self, metric: str, method: str) -> float:
        """The mean over the examples that have a value."""
        return _mean(self.values[metric][method])

    def n(self, metric: str, method: str) -> int:
        """How many examples have a value. Where it is below the number of examples, the mean is of a selection."""
        return int(np.sum(np.isfinite(self.values[metric][method])))

    def interval(self, metric: str, method: str, *, level: float = 0.95) -> tuple[float, float]:
        """Student's confidence interval of the mean over examples."""
        return _interval(self.values[metric][method], level)

    def difference(self, metric: str, a: str, b: str, *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
        """The mean of (a − b) over the examples that both have a value for, and its interval.

        The same examples and the same draws were used for both, so it is far narrower than the intervals of the two means are.
        """
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            pairs = self.values[metric][a] - self.values[metric][b]
        return _mean(pairs), _interval(pairs, level)

    def table(self, *, digits: int = 3) -> str:
        """Means ± half the interval in Markdown, one row for each method; (n) where examples have no value."""
        metrics = list(self.values)
        methods = list(dict.fromkeys(m for row in self.values.values() for m in row))
        rows = [["method", *metrics], ["---"] * (1 + len(metrics))]
        rows += [[method, *(self._cell(metric, method, digits) for metric in metrics)] for method in methods]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def _cell(self, metric: str, method: str, digits: int) -> str:
        if method not in self.values[metric]:
            return ""
        low, high = self.interval(metric, method)
        n, total = self.n(metric, method), len(self.values[metric][method])
        note = "" if n == total else f" ({n})"
        return f"{self.mean(metric, method):.{digits}g} ± {(high - low) / 2:.2g}{note}"

    def __str__(self) -> str:
        return self.table()


def compare(
    score: Callable[..., Any],
    methods: Mapping[str, Callable[..., Any]],
    metrics: Mapping[str, Callable[..., Any]],
    *,
    batch_size: int = 100,
    in_axes: int | Sequence[int | None] = 0,
    progress: bool = True,
) -> Callable[..., Comparison]:
    r"""Measure methods by metrics on many examples: `compare(score, methods, metrics)(xs, *args, key=key)` → `Comparison`.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example.
        methods: name → `method(score) -> explain`: `jx.gradient`, `functools.partial(jx.lrp, rules=…)`, `lambda score: jx.smoothgrad(jx.gradient(score))`. Include the
            controls, `metrics.random_map` and `metrics.greedy`.
        metrics: name → a metric, told apart by the **name of its first argument**:
            `score`: `functools.partial(metrics.pixel_flipping, groups=jx.patches(4, 4))`, `lambda score: …`;
            `explain`: `functools.partial(metrics.max_sensitivity, …)`; `method`: `functools.partial(metrics.input_invariance, score=…)`;
            `attribution`: a finished measure, `metrics.sparseness()`, `metrics.pointing_game()` (with `masks`), `metrics.pixel_flipping(score)`.
        batch_size: explanations per compiled chunk; see `batched`. Measures of maps take all methods together, and fewer examples.
        in_axes: for each of (x, *args) 0 or None, as in `batched`: weights as an argument are the same for all examples.
        progress: show a progress bar.

    Returns:
        `run(xs, *args, masks=None, key=None)`: arguments with a leading axis of examples; `masks` for metrics of a map and a mask; `key` where a method or a
        metric draws. It returns a `Comparison`: values per example, means, intervals, paired differences, a table.

    Guarantees: each method's maps are computed once. Example i and metric m have the same draws for every method, derived from `key`, i and the name of m
    alone: adding a method or a metric changes no other number, and differences are paired.
    Cost: Σ over methods of (one explanation + Σ of the metrics' costs), for each example; less what depends on the draws alone, which is evaluated once for all
    methods (`sensitivity_n`, `faithfulness_correlation`, `infidelity`, `completeness`). Memory: the maps of all methods, on the host.
    Errors: a metric whose first argument has another name; masks that are needed and missing; those of methods and metrics.
    Differs from: Quantus' `evaluate` has neither intervals nor paired differences, and goes on after an exception.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: x @ jnp.array([1.0, 2.0, 3.0])
        >>> table = jx.metrics.compare(
        ...     score,
        ...     methods={"gradient": jx.gradient, "input × gradient": jx.input_x_gradient},
        ...     metrics={"sparseness": jx.metrics.sparseness(), "estimate": jx.metrics.faithfulness_estimate},
        ...     progress=False,
        ... )(jnp.array([[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]]))
        >>> print(f"{table.mean('estimate', 'input × gradient'):.3f}")
        1.000
    """
    require_callable("metrics.compare", score)
    kinds = {name: _kind(name, metric) for name, metric in metrics.items()}
    of_maps = {
        name: OverMethods(metrics[name](score) if kind == "score" else metrics[name])
        for name, kind in kinds.items()
        if kind not in ("explain", "method")
    }

    def over_examples(
        f: Callable[..., Any], axes: Any, size: int, on_nan: Literal["mark", "keep"]
    ) -> Callable[..., Any]:
        run = batched(f, batch_size=size, in_axes=axes, progress=progress, on_nan=on_nan)
        needs_key = getattr(f, "needs_key", False)
        return lambda *args, key: run(*args, key=key if needs_key else None)

    explains = {name: method(score) for name, method in methods.items()}
    explainers = {name: over_examples(explain, in_axes, batch_size, "mark") for name, explain in explains.items()}
    again = {
        (name, method): over_examples(
            metrics[name](explains[method] if kind == "explain" else methods[method]), in_axes, batch_size, "keep"
        )
        for name, kind in kinds.items()
        if name not in of_maps
        for method in methods
    }
    axes_after_map = 0 if isinstance(in_axes, int) else (0, *in_axes)

    @functools.cache  # compiled once for the life of `run`
    def measure_of(name: str, n_methods: int) -> Callable[..., Any]:
        axes = axes_after_map if kinds[name] in ("score", "attribution, x") else 0
        return over_examples(of_maps[name], axes, max(1, batch_size // n_methods), "keep")

    def run(xs: Any, *args: Any, masks: Any = None, key: jax.Array | None = None) -> Comparison:
        if masks is None and "attribution, mask" in kinds.values():
            raise SettingError(
                explain_error(
                    "metrics.compare: a metric compares maps with masks.",
                    got=", ".join(name for name, kind in kinds.items() if kind == "attribution, mask"),
                    fix="compare(score, methods, metrics)(xs, labels, masks=masks)",
                )
            )
        maps = {
            method: explain(xs, *args, key=_named(key, "explanation")) if of_maps else None
            for method, explain in explainers.items()
        }
        beside = {"attribution": (), "attribution, mask": (masks,), "score": (xs, *args), "attribution, x": (xs, *args)}
        values: dict[str, dict[str, np.ndarray]] = {}
        for name, kind in kinds.items():
            found: dict[str, np.ndarray] = {}
            if name in of_maps:
                for together in alike(maps):
                    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *(maps[m] for m in together))
                    columns = measure_of(name, len(together))(stacked, *beside[kind], key=_named(key, name))
                    found |= zip(together, np.moveaxis(_number_each(name, columns, 2), 1, 0), strict=True)
            else:
                for method in methods:
                    numbers = again[name, method](xs, *args, key=_named(key, name))
                    found[method] = _number_each(name, numbers, 1)
            values[name] = {method: found[method] for method in methods}
        return Comparison(values)

    return run


class OverMethods:
    """A measure of a map, of the maps of many methods at once, stacked along their first axis.

    With the same draws for all of them. Where what the score is asked depends on the draws alone, as in `sensitivity_n`, it is asked once: under `vmap` only
    the maps have an axis of methods.
    """

    def __init__(self, measure: Callable[..., Any]):
        self.measure = measure
        self.needs_key = self.stochastic = getattr(measure, "needs_key", False)

    def __call__(self, maps: Any, *args: Any, **key: Any) -> Any:
        return jax.vmap(lambda one: self.measure(one, *args, **key))(maps)


def alike(maps: Mapping[str, Any]) -> list[list[str]]:
    """The names of maps that can be stacked: of the same structure, shapes and dtypes."""
    groups: dict[Any, list[str]] = {}
    for name, tree in maps.items():
        leaves, structure = jax.tree.flatten(tree)
        groups.setdefault((structure, tuple((a.shape, a.dtype) for a in leaves)), []).append(name)
    return list(groups.values())


def _number_each(name: str, result: Any, ndim: int) -> np.ndarray:
    found = np.asarray(result, float)
    if found.ndim != ndim:
        raise SettingError(
            explain_error(
                f"metrics.compare: the metric {name!r} must return one number for each example.",
                got=f"an array {list(found.shape[ndim:])} for each",
                fix="a mean, or a number of its curve: lambda attribution: measure(attribution).mean()",
            )
        )
    return found


def _named(key: jax.Array | None, name: str) -> jax.Array | None:
    """A key that depends on the name alone, not on what else is measured."""
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def _kind(name: str, metric: Callable[..., Any]) -> str:
    """What a metric is made from, or what a finished measure reads, by the names of its first arguments."""
    require_callable("metrics.compare", metric)
    names = list(inspect.signature(metric).parameters)
    if names[:1] == ["attribution"]:
        kind = ", ".join(n for n in names[:2] if n in ("attribution", "x", "mask"))
    else:
        kind = names[0] if names else ""
    if kind not in ("score", "explain", "method", "attribution", "attribution, x", "attribution, mask"):
        raise SettingError(
            explain_error(
                f"metrics.compare: cannot tell what the metric {name!r} takes.",
                got=f"arguments {', '.join(names)}",
                need="score, explain, method or attribution as the first one",
                why="a metric is told apart by the name of its first argument",
                fix=(
                    "functools.partial(jx.metrics.pixel_flipping, groups=jx.patches(4, 4))",
                    "lambda score: jx.metrics.faithfulness_estimate(score, baseline=0.5)",
                    "lambda explain: jx.metrics.max_sensitivity(explain, …)",
                ),
            )
        )
    return kind


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.mean(values)) if len(values) else float("nan")


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    half = scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)
