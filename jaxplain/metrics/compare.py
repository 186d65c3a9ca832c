"""Methods × metrics over many examples: each map is computed once, every number has an interval."""

import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
        batch_size: examples per compiled chunk; see `batched`.
        progress: show a progress bar.

    Returns:
        `run(xs, *args, masks=None, key=None)`: arguments with a leading axis of examples; `masks` for metrics of a map and a mask; `key` where a method or a
        metric draws. It returns a `Comparison`: values per example, means, intervals, paired differences, a table.

    Guarantees: each method's maps are computed once. Example i and metric m have the same draws for every method, derived from `key`, i and the name of m
    alone: adding a method or a metric changes no other number, and differences are paired.
    Cost: Σ over methods of (one explanation + Σ of the metrics' costs), for each example.
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

    def over_examples(measure: Callable[..., Any]) -> Callable[..., Any]:
        run = batched(measure, batch_size=batch_size, progress=progress, on_nan="mark")
        needs_key = getattr(measure, "needs_key", False)
        return lambda *args, key: run(*args, key=key if needs_key else None)

    # Those of a map are compiled once for all methods.
    measures = {
        name: over_examples(metrics[name](score) if kind == "score" else metrics[name])
        for name, kind in kinds.items()
        if kind not in ("explain", "method")
    }

    explains = {name: method(score) for name, method in methods.items()}
    explainers = {name: over_examples(explain) for name, explain in explains.items()}
    again = {
        (name, method): over_examples(metrics[name](explains[method] if kind == "explain" else methods[method]))
        for name, kind in kinds.items()
        if name not in measures
        for method in methods
    }

    def run(xs: Any, *args: Any, masks: Any = None, key: jax.Array | None = None) -> Comparison:
        if masks is None and "attribution, mask" in kinds.values():
            raise SettingError(
                explain_error(
                    "metrics.compare: a metric compares maps with masks.",
                    got=", ".join(name for name, kind in kinds.items() if kind == "attribution, mask"),
                    fix="compare(score, methods, metrics)(xs, labels, masks=masks)",
                )
            )
        values: dict[str, dict[str, np.ndarray]] = {name: {} for name in metrics}
        for method_name in methods:
            maps = explainers[method_name](xs, *args, key=_named(key, "explanation"))
            inputs = {"attribution": (maps,), "attribution, mask": (maps, masks)}
            inputs |= dict.fromkeys(("score", "attribution, x"), (maps, xs, *args))
            for name, kind in kinds.items():
                measure = measures.get(name) or again[name, method_name]
                result = np.asarray(measure(*inputs.get(kind, (xs, *args)), key=_named(key, name)), float)
                _require_numbers(name, result)
                values[name][method_name] = result
        return Comparison(values)

    return run


def _require_numbers(name: str, result: np.ndarray) -> None:
    if result.ndim != 1:
        raise SettingError(
            explain_error(
                f"metrics.compare: the metric {name!r} must return one number for each example.",
                got=f"an array {list(result.shape[1:])} for each",
                fix="a mean, or a number of its curve: lambda attribution: measure(attribution).mean()",
            )
        )


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
