"""The cells of the leaderboard, method × metric: what decides them, what they cost, and how they are computed."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxplain as jx
from jaxplain._types import Explain, Score, traits
from jaxplain.metrics._compare import scheduled
from leaderboard.board import Method, Metric, make
from leaderboard.examples import Examples
from leaderboard.store import Entry, Store, StoredCells, environment, hash_of_code

SEED = 0
FEW = 10  # examples whose `Info` says what an explanation costs


class Cell(NamedTuple):
    """One number for each example."""

    method: Method
    metric: Metric


def entry(cell: Cell, examples: Examples) -> Entry:
    """Where a cell is stored."""
    method, metric = cell
    texts = {"method": repr(method.spec), "metric": metric.text}
    return _entry((metric.name, method.name), texts, examples)


def entry_of_maps(method: Method, explained: str, examples: Examples) -> Entry:
    """Where the maps of a method are stored."""
    texts = {"method": repr(method.spec), "explained": explained}
    return _entry((f"maps of {explained}", method.name), texts, examples)


def _entry(names: tuple[str, str], texts: dict[str, str], examples: Examples) -> Entry:
    network = examples.network.name
    words = texts | {
        "examples": examples.digest,
        "network": network,
        "key": str(SEED),
        "code": hash_of_code(*_deciding()),
        "jax": environment(),
    }
    decided_by = "\n".join(f"{name}: {value}" for name, value in words.items())
    return Entry(f"{network}-{len(examples.x)}-{examples.digest[:8]}", names, decided_by)


@functools.cache
def _deciding() -> tuple[Path, ...]:
    """Source files whose code decides numbers. Settings are in the fingerprint as text, weights by their hash."""
    package, here = Path(jx.__file__).parent, Path(__file__).parent
    apart = ("plot", "nnx", "experts", "prototypes")
    library = (p for p in package.rglob("*.py") if not p.relative_to(package).as_posix().startswith(apart))
    own = [here / f"{name}.py" for name in ("cells", "controls", "examples")]
    return (*sorted(library), *own, here.parent / "tour/spec.py")


class Cost(NamedTuple):
    """Numbers of explanations and of what they ask the score, for one example or for many."""

    explanations: int = 0
    gradients: int = 0
    evaluations: int = 0

    def plus(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, n: int) -> "Cost":
        return Cost(*(n * a for a in self))


@functools.cache
def cost_of_map(method: Method, examples: Examples) -> Cost:
    """The cost of one explanation, by the `Info` of a few: the most that one of them took.

    Only the counts are computed, and most of them are constants, for which XLA removes everything else.
    """
    explain = jx.with_info(make(method, examples, examples.score("logit")))

    def counts(x: Any, y: Any, key: Any) -> tuple[Any, Any]:
        _, info = explain(x, y, key=key) if explain.needs_key else explain(x, y)
        if info.n_gradients is None:  # a plain function, i.e. a control that asks the score once
            return jnp.int32(0), jnp.int32(1)
        return info.n_gradients, jnp.int32(0) if info.n_evaluations is None else info.n_evaluations

    x, y = examples.x[:FEW], examples.y[:FEW]
    found = jax.jit(jax.vmap(counts))(x, y, jax.random.split(jax.random.key(SEED), len(x)))
    return Cost(1, *(int(np.max(n)) for n in found))


def cost(cells: Sequence[Cell], examples: Examples) -> Cost:
    """The cost for one example of the cells of one method, without the evaluations that all methods share.

    Maps are computed once for each score that is explained.
    """
    each = cost_of_map(cells[0].method, examples)
    total = each.times(len({cell.metric.explained for cell in cells if cell.metric.reads_maps_alone}))
    for _, metric in cells:
        evaluations = 0 if metric.asks_once else metric.evaluations
        total = total.plus(each.times(metric.explanations)).plus(Cost(evaluations=evaluations))
    return total


def seconds_each(examples: Examples, batch_size: int) -> tuple[float, float]:
    """Seconds per example of a forward pass and of a gradient, each timed once, compiled, in a batch."""
    score = examples.score("logit")
    rows = np.arange(batch_size) % len(examples.x)
    x, y = jnp.asarray(examples.x[rows]), jnp.asarray(examples.y[rows])

    def seconds(f: Score | Explain) -> float:
        run = jax.jit(jax.vmap(f))
        jax.block_until_ready(run(x, y))
        start = time.perf_counter()
        jax.block_until_ready(run(x, y))
        return (time.perf_counter() - start) / batch_size

    return seconds(score), seconds(jax.grad(score))


def compute(
    cells: Sequence[Cell], examples: Examples, store: Store, *, batch_size: int, bar: tqdm
) -> dict[Cell, np.ndarray]:
    """Computes cells of one set of examples, and stores each as soon as it is finished."""
    found: dict[Cell, np.ndarray] = {}
    for explained in dict.fromkeys(cell.metric.explained for cell in cells):
        some = [cell for cell in cells if cell.metric.explained == explained]
        found |= _compute(some, explained, examples, store, batch_size, bar)
    return found


def _compute(
    cells: Sequence[Cell], explained: str, examples: Examples, store: Store, batch_size: int, bar: tqdm
) -> dict[Cell, np.ndarray]:
    methods = {cell.method.name: cell.method for cell in cells}
    metrics = {cell.metric.name: cell.metric for cell in cells}
    entries = {(metric.name, method.name): entry(Cell(method, metric), examples) for method, metric in cells}
    maps = {name: entry_of_maps(method, explained, examples) for name, method in methods.items()}
    run = scheduled(
        examples.score(explained),
        {name: functools.partial(make, method, examples) for name, method in methods.items()},
        {name: _of_compare(metric, examples) for name, metric in metrics.items()},
        make_score=functools.partial(examples.make_score, explained),
        batch_size=min(batch_size, len(examples.x)),
        in_axes=0,
        progress=False,
        cells=StoredCells(store, maps, entries, bar),
    )
    key, params = jax.random.key(SEED), examples.network.params
    values = run(examples.x, examples.y, masks=examples.masks, params=params, key=key).values
    return {cell: values[cell.metric.name][cell.method.name] for cell in cells}


def _of_compare(metric: Metric, examples: Examples) -> Callable[..., Any]:
    """The metric as `metrics.compare` takes it, which reads the name of the first argument."""
    score_measured = examples.score(metric.of)
    if metric.recomputes:
        return lambda explain: _Recomputed(metric.spec(score_measured, explain=explain), explain)
    if metric.made_from == "explain":
        return lambda explain: metric.spec(explain)
    if metric.made_from == "make_explain":
        return lambda make_explain: metric.spec(make_explain)
    if metric.made_from == "score":
        return lambda score: metric.spec(score if metric.of == metric.explained else score_measured)
    measure: Callable[..., Any] = metric.spec()
    return measure


class _Recomputed:
    """A measure of a map that explains again at every step, as a measure of an explainer: it begins with the map."""

    def __init__(self, measure: Callable[..., Any], explain: Explain):
        self._measure, self._explain = measure, explain
        self.needs_key = self.stochastic = traits(measure).needs_key

    def __call__(self, *args: Any, **key: Any) -> Any:
        return self._measure(self._explain(*args), *args, **key)
