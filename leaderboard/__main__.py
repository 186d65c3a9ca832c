"""Measure every method by every metric: prints the cost, computes missing cells, writes tables and figures."""

import argparse
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from tqdm import tqdm

import jaxplain as jx
from leaderboard import board, examples, report
from leaderboard.board import Method, Metric
from leaderboard.cells import Cell, Cost, compute, cost, entry, seconds_each
from leaderboard.examples import Examples
from leaderboard.store import Store

QUICK = 10  # examples of each set: enough to see that everything runs


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    every = (*board.METRICS, *board.PROTOCOLS)
    _require_known("metric", options.metrics, [*(m.family for m in every), *(m.name for m in every)])
    metrics = [m for m in every if m.matches(options.metrics)]
    sets = _sets(options, {metric.on for metric in metrics})
    methods = {on: _methods(on, some) for on, some in sets.items()}
    _require_known("method", options.methods, [m.name for on in methods for m in methods[on]])
    plan = {on: _cells(on, methods[on], metrics, options.methods) for on in sets}

    store = Store(options.output / "cells")
    found: dict[Cell, np.ndarray | None] = {
        cell: store.read(entry(cell, sets[on])) for on, cells in plan.items() for cell in cells
    }
    missing = {on: [cell for cell in cells if found[cell] is None] for on, cells in plan.items()}
    _print_kept(store, found)
    _print_cost(missing, sets, options.batch_size)
    if options.dry_run:
        return

    with tqdm(total=sum(map(len, missing.values())), unit="cell") as bar:
        for on, cells in missing.items():
            found |= compute(cells, sets[on], store, batch_size=options.batch_size, bar=bar)
    values: report.Values = {}
    for cell, numbers in found.items():
        if numbers is not None:
            values.setdefault(cell.metric.name, {})[cell.method.name] = numbers
    paths = report.write(options.output, values, sets)
    print("\n" + "\n".join(map(str, paths)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="leaderboard", description=__doc__)
    add = parser.add_argument
    add("--network", default="cnn_maxpool", choices=jx.zoo.NAMES, help="network that sees the digits")
    add("--digits", type=int, help="for faithfulness, complexity and axioms (1000)")
    add("--scenes", type=int, help="for localization, by the network gap_cluttered (1000)")
    add("--robust", type=int, help="digits for robustness and randomization (200)")
    add("--protocols", type=int, help="digits for the protocols of flipping, by the network cnn_avgpool (200)")
    add("--methods", nargs="+", default=["*"], metavar="GLOB", help="e.g. 'LRP*'")
    add("--metrics", nargs="+", default=["*"], metavar="GLOB", help="names or families, e.g. 'flipping*', localization")
    add(
        "--output", type=Path, default=Path("leaderboard_results"), help="folder for tables, figures and finished cells"
    )
    add("--batch-size", type=int, default=100, help="examples per compiled chunk")
    add("--dry-run", action="store_true", help="only print the cost")
    add("--quick", action="store_true", help=f"{QUICK} examples of each, unless others are asked for")
    options = parser.parse_args(arguments)
    for name, n in (("digits", 1000), ("scenes", 1000), ("robust", 200), ("protocols", 200)):
        if getattr(options, name) is None:
            setattr(options, name, QUICK if options.quick else n)
        if not 2 <= getattr(options, name) <= (np.inf if name == "scenes" else 1000):
            parser.error(f"--{name} must be at least 2, for an interval, and there are 1,000 held-out digits")
    if options.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    return options


def _sets(options: argparse.Namespace, needed: set[str]) -> dict[str, Examples]:
    makers = {
        "digits": lambda: examples.digits(options.network, options.digits),
        "scenes": lambda: examples.scenes(options.scenes),
        "some digits": lambda: examples.digits(options.network, options.robust),
        "protocol digits": lambda: examples.digits("cnn_avgpool", options.protocols),
    }
    return {on: make() for on, make in makers.items() if on in needed}


def _methods(on: str, some: Examples) -> tuple[Method, ...]:
    return board.PROTOCOL_METHODS if on == "protocol digits" else board.methods(some)


def _cells(on: str, methods: Sequence[Method], metrics: Sequence[Metric], patterns: Sequence[str]) -> list[Cell]:
    """The cells of a set that are wanted and not left out, ordered by method."""
    wanted = [m for m in methods if any(fnmatchcase(m.name, p) for p in patterns)]
    measured = [m for m in metrics if m.on == on]
    return [Cell(a, b) for a in wanted for b in measured if board.why_not(a.name, b) is None]


def _require_known(kind: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a pattern that matches nothing, because the cells it was meant for would silently be missing."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = [name for name in dict.fromkeys(names) if name.count(", ") < 4]  # without 126 protocols
            raise SystemExit(f"leaderboard: no {kind} matches {pattern!r}; known: {'; '.join(known)}")


def _print_kept(store: Store, found: dict[Cell, np.ndarray | None]) -> None:
    kept = sum(values is not None for values in found.values())
    print(f"{kept} of {len(found)} cells are already in {store.folder}")
    if store.outdated:
        print(
            f"{len(store.outdated)} cells there have other settings, examples, weights or code; they are measured again"
        )
    for path in store.unreadable:
        print(f"{path} cannot be read; it is measured again")


def _print_cost(missing: dict[str, list[Cell]], sets: dict[str, Examples], batch_size: int) -> None:
    """The work that is left, by metric and by method, and its time at the speed measured now."""
    if not any(missing.values()):
        print("nothing is left to measure")
        return
    print(f"\n{'for one example':<48} {'explanations':>13} {'evaluations':>12}   examples × methods")
    for metric, n in Counter(cell.metric for cells in missing.values() for cell in cells).items():
        if metric.family != "protocols":
            row = f"{metric.explanations:>13,} {metric.evaluations:>12,}"
            print(f"{metric.family + ': ' + metric.name:<48} {row}   {len(sets[metric.on].x):,} × {n}")

    head = f"{'method':<23} {'cells':>5} {'explain.':>8} {'gradients':>9} {'evals':>8}"
    print(f"\n{'':<18} {'for one example':^56} {'in all':^31}")
    print(f"{'':<18} {head} {'gradients':>11} {'evals':>12} {'time':>8}")
    all_of_it, all_seconds = Cost(), 0.0
    timed: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}
    for on, cells in missing.items():
        if not cells:
            continue
        at = (sets[on].network.name, sets[on].x.shape[1:])
        if at not in timed:
            timed[at] = seconds_each(sets[on], batch_size)
        forward, gradient = timed[at]
        for name, n, one in _costs(cells, sets[on]):
            total = one.times(len(sets[on].x))
            seconds = total.gradients * gradient + total.evaluations * forward
            all_of_it, all_seconds = all_of_it.plus(total), all_seconds + seconds
            each = f"{name:<23} {n or '':>5} {one.explanations:>8,} {one.gradients:>9,} {one.evaluations:>8,}"
            print(f"{on:<18} {each} {total.gradients:>11,} {total.evaluations:>12,} {_time(seconds):>8}")
        print(f"{on:<18} one evaluation takes {1e6 * forward:,.0f} µs here, one gradient {1e6 * gradient:,.0f} µs\n")
    n_calls = f"{all_of_it.explanations:,} explanations, {all_of_it.gradients:,} gradients"
    n_calls += f" and {all_of_it.evaluations:,} evaluations"
    print(f"in all {n_calls}: about {_time(all_seconds)}, and compiling {_programs(missing)} programs\n")


def _costs(cells: Sequence[Cell], some: Examples) -> list[tuple[str, int, Cost]]:
    """Method, number of cells and cost for one example; first the evaluations that are made once for all methods."""
    shared = sum(metric.evaluations for metric in {cell.metric for cell in cells} if metric.asks_once)
    lines = [("all of them", 0, Cost(evaluations=shared))] if shared else []
    for method in dict.fromkeys(cell.method for cell in cells):
        of_method = [cell for cell in cells if cell.method == method]
        lines.append((method.name, len(of_method), cost(of_method, some)))
    return lines


def _programs(missing: dict[str, list[Cell]]) -> int:
    """The number of programs to compile: explanations once for all metrics, measures of maps once for all methods."""
    found = set()
    for on, cells in missing.items():
        for method, metric in cells:
            if metric.reads_maps_alone:
                found |= {(on, method.name, metric.explained), (on, "", metric.name)}
            else:
                found.add((on, method.name, metric.name))
    return len(found)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
