"""The result of comparing methods: a number for each example, means, intervals, paired differences."""

from dataclasses import dataclass

import numpy as np

from jaxplain._checks import number
from jaxplain._errors import SettingError, explain_error


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: one number per example, for each metric and method. `print` it for a table in Markdown.

    Attributes:
        values: Metric → method → array with one number per example, NaN (or infinite) if the metric has no value there.
    """

    values: dict[str, dict[str, np.ndarray]]

    def mean(self, metric: str, method: str) -> float:
        """The mean over the examples that have a value."""
        return _mean(self._of(metric, method))

    def n(self, metric: str, method: str) -> int:
        """The number of examples that have a value. If some have none, the mean is that of a selection."""
        return int(np.sum(np.isfinite(self._of(metric, method))))

    def interval(self, metric: str, method: str, *, level: float = 0.95) -> tuple[float, float]:
        """Student's confidence interval of the mean over examples."""
        return _interval(self._of(metric, method), level)

    def difference(self, metric: str, a: str, b: str, *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
        """The mean of (a − b) over the examples for which both have a value, and its interval.

        Both used the same examples and draws, so that it is far narrower than the intervals of the two means.
        """
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            pairs = self._of(metric, a) - self._of(metric, b)
        return _mean(pairs), _interval(pairs, level)

    def table(self, *, digits: int = 3) -> str:
        """Means ± half the interval in Markdown, one row for each method; with (n) if some examples have no value."""
        metrics = list(self.values)
        methods = list(dict.fromkeys(m for row in self.values.values() for m in row))
        rows = [["method", *metrics]]
        rows += [[method, *(self._cell(metric, method, digits) for metric in metrics)] for method in methods]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        return "\n".join(f"| {' | '.join(row)} |" for row in padded)

    def _of(self, metric: str, method: str) -> np.ndarray:
        for kind, name, known in (("metric", metric, self.values), ("method", method, self.values.get(metric, {}))):
            if name not in known:
                need = ", ".join(map(repr, known))
                raise SettingError(explain_error(f"metrics.Comparison: no {kind} {name!r}.", need=f"{kind}s: {need}"))
        return self.values[metric][method]

    def _cell(self, metric: str, method: str, digits: int) -> str:
        if method not in self.values[metric]:
            return ""
        low, high = self.interval(metric, method)
        n, total = self.n(metric, method), len(self.values[metric][method])
        note = "" if n == total else f" ({n})"
        return f"{self.mean(metric, method):.{digits}g} ± {(high - low) / 2:.2g}{note}"

    def __str__(self) -> str:
        return self.table()


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.mean(values)) if len(values) else float("nan")


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    import scipy.stats  # here, because it takes a second to import

    number(0.0, 1.0)("interval", "level", level)
    half = scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)
