"""Tables and figures of the leaderboard. All intervals are 95 %, over examples; all comparisons are paired."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxplain import zoo
from jaxplain.metrics._comparison import Comparison
from jaxplain.plot import _pyplot
from leaderboard import board
from leaderboard.board import EXCLUDED, METRICS, PROTOCOLS, Metric
from leaderboard.examples import Examples

Values: TypeAlias = dict[str, dict[str, np.ndarray]]  # metric → method → a number for each example

CONTROLS = tuple(method.name for method in board.CONTROLS)
ENOUGH = 0.9  # a mean over less than this share of the examples is not compared
_BEST, _OTHER = "#b2182b", "0.35"
_COLORS = {"sensitivity": "#e08214", "Taylor (x·∇f)": "#2166ac", "deep Taylor": "#1b7837", "random": "0.6"}
_IN_QUESTION = ("Taylor (x·∇f)", "deep Taylor")
_OFFSETS = {"sensitivity": -0.22, "deep Taylor": 0.22}


def write(folder: Path, values: Values, sets: Mapping[str, Examples]) -> list[Path]:
    """Writes tables in Markdown and figures of the values; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Comparison(values)
    paths = []

    def save(name: str, shows: str, figure: Any) -> str:
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=200, bbox_inches="tight", pad_inches=0.05)
        _pyplot().close(figure)
        return f"[![{shows}]({name})]({name})"

    if metrics := [m for m in METRICS if m.name in values]:
        parts = [
            _HEAD,
            _sets(metrics, sets),
            save("ranks.png", "Ranks of all methods by all metrics", ranks(found, metrics)),
        ]
        for family, members in _families(metrics):
            picture = save(f"{family}.png", f"All methods by the metrics of {family}", panels(found, members))
            parts += [f"## {family.capitalize()}", table(found, members), picture]
        paths.append(folder / "methods.md")
        paths[-1].write_text(
            "\n\n".join((*parts, "## What was measured", _settings(metrics), _left_out(metrics))) + "\n"
        )
    if metrics := [m for m in PROTOCOLS if m.name in values]:
        parts = [
            _PROTOCOLS_HEAD,
            _sets(metrics, sets),
            save("protocols.png", "Three methods under all protocols", protocol_panels(found, metrics)),
        ]
        parts += ["## Who wins", wins(found, metrics), "## Every protocol", protocol_table(found, metrics)]
        paths.append(folder / "protocols.md")
        paths[-1].write_text("\n\n".join(parts) + "\n")
    return paths


_HEAD = f"""# Methods by metrics

Mean ± half the 95 % interval over examples. ↓: low is good, ↑: high is good. **Bold**: the best method, and every
method whose paired difference from the best has an interval that contains 0; intervals are not adjusted for multiple
comparisons. (n): number of examples with a value, where some have none; below {100 * ENOUGH:.0f} % the mean is of a
selection and is not compared. –: left out, for the reasons at the end. *Controls* do not take part. The logit of the
true class is explained."""

_PROTOCOLS_HEAD = """# Selectivity under every protocol

Three methods are flipped on a network without biases: sensitivity analysis, simple Taylor decomposition (x·∇f) and deep
Taylor decomposition (zᴮ, z⁺). The number is the mean height of the curve of f while groups of features are removed in
the order of their relevance. With the most relevant first, low is good; with the least relevant first, high is good.
*Static* uses the order of one map, *recomputed* explains the remaining image again at every step. f is explained, a
probability by its logit. Windows are 4 × 4 pixels anywhere; *recomputed, most first, relu(logit), windows, black* is
the tutorial's own protocol. Intervals are 95 %, over examples; differences are paired and not adjusted for multiple
comparisons."""


def alike(found: Comparison, metric: Metric) -> list[str]:
    """The best method of a metric, and then those that do not differ from it."""
    methods = [m for m in found.values[metric.name] if m not in CONTROLS and _is_whole(found, metric.name, m)]
    if not methods:
        return []
    best = min(methods, key=lambda m: _sign(metric) * found.mean(metric.name, m))
    return [best] + [m for m in methods if m != best and not _differs(found, metric.name, best, m)]


def table(found: Comparison, metrics: Sequence[Metric]) -> str:
    """One row for each method, sorted by the first metric; controls last."""
    marked = {metric.name: alike(found, metric) for metric in metrics}

    def cell(metric: Metric, method: str) -> str:
        text = _cell(found, metric.name, method)
        return f"**{text}**" if method in marked[metric.name] else text

    head = ["method", *(f"{m.name} {_arrow(m)}" for m in metrics)]
    names = _sorted(found, metrics)
    return _markdown(head, ([f"*{n}*" if n in CONTROLS else n, *(cell(m, n) for m in metrics)] for n in names))


def protocol_table(found: Comparison, metrics: Sequence[Metric]) -> str:
    """One row for each protocol: the means, the paired difference that is in question, and the order of all."""
    methods = [m for m in _COLORS if any(m in found.values[metric.name] for metric in metrics)]
    head = ["protocol", "good", *methods, " − ".join(_IN_QUESTION), "best first"]

    def row(metric: Metric) -> list[str]:
        name = metric.name
        difference = _number(*_difference(found, name, *_IN_QUESTION))
        return [name, metric.good, *(_cell(found, name, m) for m in methods), difference, order(found, metric)]

    return _markdown(head, map(row, metrics))


def order(found: Comparison, metric: Metric) -> str:
    """The methods, best first; "=" between neighbors whose paired difference has an interval that contains 0."""
    methods = [m for m in found.values[metric.name] if m not in CONTROLS]
    methods.sort(key=lambda m: _sign(metric) * found.mean(metric.name, m))
    words = methods[:1]
    for a, b in itertools.pairwise(methods):
        words += [">" if _differs(found, metric.name, a, b) else "=", b]
    return " ".join(words)


def wins(found: Comparison, metrics: Sequence[Metric]) -> str:
    """For each pair of methods, how many protocols favor one, neither, or the other; by every factor."""
    factors = ("ranking", "order", "f", "groups", "removal")
    methods = [m for m in _COLORS if m not in CONTROLS and any(m in found.values[p.name] for p in metrics)]
    pairs = list(itertools.combinations(methods, 2))

    def counts(some: Sequence[Metric], a: str, b: str) -> str:
        better = [0, 0, 0]
        for metric in some:
            difference, _ = _difference(found, metric.name, a, b)
            known = _differs(found, metric.name, a, b)
            better[1 if not known else 0 if _sign(metric) * difference < 0 else 2] += 1
        return " / ".join(map(str, better))

    rows = [["all", str(len(metrics)), *(counts(metrics, *pair) for pair in pairs)]]
    for place, factor in enumerate(factors):
        for level in dict.fromkeys(m.name.split(", ")[place] for m in metrics):
            some = [m for m in metrics if m.name.split(", ")[place] == level]
            rows.append([f"{factor}: {level}", str(len(some)), *(counts(some, *pair) for pair in pairs)])
    return _markdown(["", "protocols", *(f"{a} / undecided / {b}" for a, b in pairs)], rows)


def panels(found: Comparison, metrics: Sequence[Metric]) -> Any:
    """A panel for each metric, a row for each method: means and intervals, the random control as a dashed line."""
    names = [n for n in _sorted(found, metrics) if n != "random"]
    figure, axes = _pyplot().subplots(
        1,
        len(metrics),
        figsize=(1.9 + 1.35 * len(metrics), 1.0 + 0.165 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, wspace=0.02)
    for ax, metric in zip(axes[0], metrics, strict=True):
        best = alike(found, metric)
        if _spans_decades(found, metric):
            ax.set_xscale("log")
        for row, name in enumerate(names):
            if name not in found.values[metric.name]:
                _write(ax, 0.5, row, "–", transform=ax.get_yaxis_transform(), color="0.75", fontsize=7)
                continue
            color = _BEST if name in best else _OTHER
            whole = _is_whole(found, metric.name, name)
            _point(ax, found, metric.name, name, row, color, "D" if name in CONTROLS else "o", filled=whole)
        if "random" in found.values[metric.name]:
            ax.axvline(found.mean(metric.name, "random"), color="0.5", lw=0.8, ls=(0, (4, 2)), zorder=1)
        _rows_style(ax, names)
        ax.set_title(metric.name, fontsize=8, pad=13)
        text = "← better" if metric.good == "low" else "better →"
        ax.text(0.5, 1.012, text, transform=ax.transAxes, ha="center", va="bottom", fontsize=6, color="0.45")
    for label in axes[0, 0].get_yticklabels():
        label.set_style("italic" if label.get_text() in CONTROLS else "normal")
    words = ["mean and 95 % interval", "red: the best, and methods that do not differ from it"]
    if not all(_is_whole(found, m.name, n) for m in metrics for n in found.values[m.name]):
        words.append(f"hollow: under {100 * ENOUGH:.0f} % of the examples have a value")
    if any("random" in found.values[m.name] for m in metrics):
        words.append("dashed: a random map")
    return _captioned(figure, "; ".join(words))


def ranks(found: Comparison, metrics: Sequence[Metric]) -> Any:
    """Methods × metrics: the rank of each mean, dark for the best; sorted by the mean rank in the first family."""
    names = [n for n in _sorted(found, metrics) if n not in CONTROLS]
    grid = np.full((len(names), len(metrics)), np.nan)
    for column, metric in enumerate(metrics):
        known = [n for n in names if n in found.values[metric.name] and _is_whole(found, metric.name, n)]
        known.sort(key=lambda n: _sign(metric) * found.mean(metric.name, n))
        for rank, name in enumerate(known, start=1):
            grid[names.index(name), column] = rank
    first = [i for i, m in enumerate(metrics) if m.family == metrics[0].family]
    means = [np.mean(row[np.isfinite(row)]) if np.isfinite(row).any() else np.inf for row in grid[:, first]]
    places = np.argsort(means, kind="stable")
    names, grid = [names[i] for i in places], grid[places]

    size = (2.2 + 0.36 * len(metrics), 1.6 + 0.17 * len(names))
    figure, ax = _pyplot().subplots(figsize=size, layout="constrained")
    ax.imshow(grid, cmap="YlGnBu_r", vmin=1, vmax=max(len(names), 2), aspect="auto", interpolation="nearest")
    for column, metric in enumerate(metrics):
        best = alike(found, metric)
        for row, name in enumerate(names):
            rank = grid[row, column]
            text = "–" if name not in found.values[metric.name] else "·" if math.isnan(rank) else f"{rank:.0f}"
            color = "white" if rank < 0.45 * len(names) else "0.15"
            weight = "bold" if name in best else "normal"
            _write(ax, column, row, text, fontsize=6, color=color, fontweight=weight)
    heads = [f"{m.name} {_arrow(m)}" for m in metrics]
    ax.set_xticks(range(len(metrics)), heads, rotation=55, ha="left", rotation_mode="anchor", fontsize=7)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    start = 0
    for family, members in _families(metrics):
        if start:
            ax.axvline(start - 0.5, color="white", lw=3)
        _write(ax, start + (len(members) - 1) / 2, len(names) - 0.3, family, va="top", fontsize=6, color="0.35")
        start += len(members)
    words = ["ranks of means", "bold: the best, and methods that do not differ from it"]
    words += [f"·: under {100 * ENOUGH:.0f} % of the examples have a value", "–: left out"]
    return _captioned(figure, "; ".join(words))


def protocol_panels(found: Comparison, metrics: Sequence[Metric]) -> Any:
    """Ranking and order down, f across: every removal and grouping a row, every method a color."""
    split = {m.name: m.name.split(", ") for m in metrics}
    bands = list(dict.fromkeys((s[0], s[1]) for s in split.values()))
    scores = list(dict.fromkeys(s[2] for s in split.values()))
    labels = {b: list(dict.fromkeys(f"{s[3]}, {s[4]}" for s in split.values() if (s[0], s[1]) == b)) for b in bands}
    heights = [len(labels[b]) + 1.5 for b in bands]
    figure, axes = _pyplot().subplots(
        len(bands),
        len(scores),
        figsize=(1.6 + 2.3 * len(scores), 1.1 + 0.2 * sum(heights)),
        sharex="col",
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for (ranking, order_), line in zip(bands, axes, strict=True):
        rows = labels[ranking, order_]
        for ax, of in zip(line, scores, strict=True):
            for row, label in enumerate(rows):
                name = f"{ranking}, {order_}, {of}, {label}"
                for method in found.values.get(name, {}):
                    at = row + _OFFSETS.get(method, 0.0)
                    _point(ax, found, name, method, at, _COLORS.get(method, _OTHER), "|" if method == "random" else "o")
            _rows_style(ax, rows)
            good = "← better" if order_ == "most" else "better →"
            ax.set_title(f"{ranking}, {order_} relevant first    {good}", fontsize=6.5, color="0.35", pad=2)
            if ax is not line[0]:
                ax.tick_params(labelleft=False)
    for ax, of in zip(axes[-1], scores, strict=True):
        ax.set_xlabel(f"mean height of the curve of f = {of}", fontsize=7)
    used = [m for m in _COLORS if any(m in found.values[p.name] for p in metrics)]
    lines = [_pyplot().Line2D([], [], color=_COLORS[m], marker="|" if m == "random" else "o", ms=4, lw=0) for m in used]
    figure.legend(lines, used, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    words = (
        "means and their 95 % intervals over examples; the intervals of paired differences, in the table, are narrower"
    )
    return _captioned(figure, words)


def _write(ax: Any, x: float, y: float, text: str, **style: Any) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center"} | style)


def _captioned(figure: Any, words: str) -> Any:
    width = int(22 * figure.get_figwidth())  # characters of this size per line
    figure.supxlabel("\n".join(textwrap.wrap(words, width)), fontsize=6, color="0.35")
    return figure


def _point(
    ax: Any, found: Comparison, metric: str, method: str, row: float, color: str, marker: str, *, filled: bool = True
) -> None:
    mean, (low, high) = found.mean(metric, method), found.interval(metric, method)
    if math.isnan(mean):
        return
    half = 0.0 if math.isnan(high) else (high - low) / 2
    face = color if filled else "white"
    ax.errorbar(mean, row, xerr=half, fmt=marker, ms=3.2, lw=1.1, color=color, mfc=face, mew=0.8, zorder=3)


def _rows_style(ax: Any, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set_ylim(len(names) - 0.4, -0.6)
    for row in range(0, len(names), 2):
        ax.axhspan(row - 0.5, row + 0.5, color="0.965", lw=0, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=6, width=0.5, length=2)
    ax.tick_params(axis="x", which="minor", length=0)
    if ax.get_xscale() == "linear":
        ax.locator_params(axis="x", nbins=4)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set(linewidth=0.5, color="0.5")


def _spans_decades(found: Comparison, metric: Metric) -> bool:
    """Whether the means of methods need a logarithmic axis, e.g. from rounding errors to 10 %, that controls fit on."""
    means = {name: found.mean(metric.name, name) for name in found.values[metric.name]}
    of_methods = [mean for name, mean in means.items() if name not in CONTROLS and math.isfinite(mean)]
    is_positive = not any(mean <= 0 for mean in means.values())
    return bool(of_methods) and is_positive and max(of_methods) > 1000 * min(of_methods)


def _families(metrics: Iterable[Metric]) -> list[tuple[str, list[Metric]]]:
    return [(family, list(members)) for family, members in itertools.groupby(metrics, key=lambda m: m.family)]


def _sorted(found: Comparison, metrics: Sequence[Metric]) -> list[str]:
    """Methods, best first by the first metric; then those whose mean is of a selection; controls come last."""
    names = list(dict.fromkeys(n for m in metrics for n in found.values[m.name]))

    def place(name: str) -> tuple[bool, bool, float]:
        first = metrics[0]
        mean = found.mean(first.name, name) if name in found.values[first.name] else math.nan
        if math.isnan(mean):
            return name in CONTROLS, True, 0.0
        return name in CONTROLS, not _is_whole(found, first.name, name), _sign(first) * mean

    return sorted(names, key=place)


def _sign(metric: Metric) -> int:
    return 1 if metric.good == "low" else -1


def _arrow(metric: Metric) -> str:
    return "↓" if metric.good == "low" else "↑"


def _is_whole(found: Comparison, metric: str, method: str) -> bool:
    return found.n(metric, method) >= ENOUGH * len(found.values[metric][method])


def _difference(found: Comparison, metric: str, a: str, b: str) -> tuple[float, float]:
    """The mean of a − b, and half its interval; NaN if no two examples have both."""
    if any(m not in found.values[metric] for m in (a, b)):
        return math.nan, math.nan
    if not np.isfinite(found.values[metric][a] - found.values[metric][b]).any():
        return math.nan, math.nan
    mean, (low, high) = found.difference(metric, a, b)
    return mean, (high - low) / 2


def _differs(found: Comparison, metric: str, a: str, b: str) -> bool:
    """Whether the interval of the difference excludes 0; an unknown difference does not count."""
    mean, half = _difference(found, metric, a, b)
    return abs(mean) > half


def _cell(found: Comparison, metric: str, method: str) -> str:
    if method not in found.values[metric]:
        return "–"
    low, high = found.interval(metric, method)
    n, total = found.n(metric, method), len(found.values[metric][method])
    return _number(found.mean(metric, method), (high - low) / 2) + (f" ({n})" if n < total else "")


def _number(mean: float, half: float) -> str:
    """A mean with as many digits as two digits of its half interval need; without line breaks."""
    if not (math.isfinite(half) and half > 0):
        return "–" if math.isnan(mean) else f"{mean:.3g}"
    if half >= 1e4 or half < 1e-4:
        return f"{mean:.2e}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{half:.0e}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{half:.{digits}f}".replace("-", "−")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _sets(metrics: Sequence[Metric], sets: Mapping[str, Examples]) -> str:
    lines = []
    for on in dict.fromkeys(m.on for m in metrics):
        network, x, y = sets[on].network, sets[on].x, sets[on].y
        right, what = 100 * zoo.accuracy(network, x, y), "scenes" if on == "scenes" else "digits"
        of = ", ".join(dict.fromkeys(m.family for m in metrics if m.on == on))
        lines.append(f"- {of}: {len(x):,} held-out {what}, network `{network.name}`, {right:.1f} % of them right")
    return "\n".join(lines)


def _settings(metrics: Sequence[Metric]) -> str:
    cost = "evaluations of the score and explanations for one example, in addition to its map"
    return _markdown(
        ["metric", "settings", "evaluations", "explanations"],
        ([m.name, f"`{m.spec!r}`", str(m.evaluations), str(m.explanations)] for m in metrics),
    ) + (f"\n\nCosts: {cost}. Random weights: one draw for all examples, so that intervals are only over examples.")


def _left_out(metrics: Sequence[Metric]) -> str:
    shown = {m.family for m in metrics} | {m.name for m in metrics}
    rows = [(", ".join(e.methods), ", ".join(m for m in e.metrics if m in shown or "*" in m), e.why) for e in EXCLUDED]
    return "## What is left out\n\n" + _markdown(["methods", "metrics", "why"], [row for row in rows if row[1]])
