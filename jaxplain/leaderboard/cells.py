"""The cells of the leaderboard, method × metric: what they cost, what decides them, measured once and kept."""

import ast
import functools
import hashlib
import io
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxplain as jx
from jaxplain.leaderboard.board import SLOPES, UNSIGNED, Examples, Method, Metric

SEED = 0


class Cell(NamedTuple):
    method: Method
    metric: Metric


class Store:
    """One .npz for each cell: a number for every example, and what decided them.

    A cell counts if its fingerprint is the one that is asked for. One that was cut off, or is no cell, is as good as none, and is listed in `unreadable`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.unreadable: list[Path] = []
        self.outdated: list[Path] = []

    def path(self, cell: Cell) -> Path:
        name = f"{cell.metric.on}/{cell.metric.name}/{cell.method.name}"
        slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in f"{cell.metric.name}__{cell.method.name}")
        return self.folder / f"{slug}-{zlib.crc32(name.encode()):08x}.npz"

    def read(self, cell: Cell, decided_by: str) -> np.ndarray | None:
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                values, found = file["values"], str(file["decided_by"])
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError):
            self.unreadable.append(path)
            return None
        if found != decided_by:
            self.outdated.append(path)
            return None
        return values

    def write(self, cell: Cell, decided_by: str, values: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(cell)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")  # a cell is there as a whole, or not at all
        with unfinished.open("wb") as file:
            np.savez(file, values=values, decided_by=np.array(decided_by))
        unfinished.replace(path)


def decided_by(cell: Cell, examples: Examples) -> str:
    """All that decides the numbers of a cell, written out; what is long by its hash."""
    method, metric = cell
    words = {
        "method": method.text,
        "metric": metric.text,
        "examples": examples.digest,
        "network": examples.network.name,
        "key": SEED,
        "code": _hash_of_code(),
        "jax": f"{jax.__version__}, x64={jax.config.read('jax_enable_x64')}",
    }
    if metric.reads == "slope":
        words["slopes"] = _is_in(SLOPES, method)
    if metric.reads == "evidence":
        words["unsigned"] = _is_in(UNSIGNED, method)
    return "\n".join(f"{name}: {value}" for name, value in words.items())


# What no number depends on, or is in the fingerprint by itself: the text of each method and metric, the weights.
_NOT_HASHED = ("leaderboard/report", "leaderboard/__main__", "tour", "plot", "nnx", "experts", "prototypes")  # fmt: skip


@functools.cache
def _hash_of_code() -> str:
    """Of the package's source files, without comments and docstrings, which may be improved while a board is half done."""
    root = Path(jx.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name.startswith(_NOT_HASHED):
            continue
        tree = ast.parse(path.read_text())
        if name == "leaderboard/board":  # its tables are in the text of each cell, its classes are code
            tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
                body[0] = ast.Pass()  # type: ignore[index]
        found.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return found.hexdigest()[:16]


def _is_in(patterns: Sequence[str], method: Method) -> bool:
    return any(fnmatchcase(method.name, p) for p in patterns)


class Cost(NamedTuple):
    """Of one example, or of many."""

    explanations: int = 0
    gradients: int = 0
    evaluations: int = 0

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, n: int) -> "Cost":
        return Cost(*(n * a for a in self))


def cost_of_maps(method: Method, examples: Examples) -> Cost:
    """Of one explanation. Evaluations depend on the number of 4 × 4 patches."""
    height, width = examples.x.shape[1:3]
    return Cost(1, method.gradients, method.evaluations(-(-height // 4) * -(-width // 4)))


def cost(cells: Sequence[Cell], examples: Examples) -> Cost:
    """Of the cells of one method on one set, for one example: its maps are computed once for each score that is explained."""
    each = cost_of_maps(cells[0].method, examples)
    maps = {cell.metric.explained for cell in cells if needs_map(cell.metric)}
    total = each.times(len(maps))
    for _, metric in cells:
        total += each.times(metric.explanations) + Cost(evaluations=metric.evaluations)
    return total


def needs_map(metric: Metric) -> bool:
    return metric.made_from not in ("explain", "weights")


def seconds_each(examples: Examples, batch_size: int) -> tuple[float, float]:
    """Seconds for one example of a forward pass and of a gradient here, each timed once, compiled, in a batch."""
    score = examples.score("logit")
    rows = np.arange(batch_size) % len(examples.x)
    x, y = jnp.asarray(examples.x[rows]), jnp.asarray(examples.y[rows])

    def seconds(f: Callable[..., Any]) -> float:
        run = jax.jit(jax.vmap(f))
        jax.block_until_ready(run(x, y))
        start = time.perf_counter()
        jax.block_until_ready(run(x, y))
        return (time.perf_counter() - start) / batch_size

    return seconds(score), seconds(jax.grad(score))


def compute(
    cells: Sequence[Cell], examples: Examples, store: Store, *, batch_size: int, bar: tqdm
) -> dict[Cell, np.ndarray]:
    """Measure cells of one set of examples, those of a method together, and store each as soon as it is finished."""
    bench, found = _Bench(examples, batch_size), {}
    for cell in cells:
        bar.set_postfix_str(f"{cell.method.name}: {cell.metric.name}")
        try:
            found[cell] = bench.values(cell).astype(float)
        except Exception as error:
            error.add_note(
                f"leaderboard: {cell.method.name!r} by {cell.metric.name!r}; what was finished before is kept"
            )
            raise
        store.write(cell, decided_by(cell, examples), found[cell])
        bar.update()
    return found


class _Bench:
    """One set of examples, and what its cells share: the measures, compiled once for all methods, and the maps of the method at hand.

    Draws are those of `metrics.compare`: example i and metric m have the same for every method, derived from the seed, i and the name of m alone.
    """

    def __init__(self, examples: Examples, batch_size: int):
        self.examples = examples
        self._batch_size = min(batch_size, len(examples.x))
        self._measures: dict[str, Callable[..., np.ndarray]] = {}
        self._maps: dict[tuple[str, str], np.ndarray] = {}

    def values(self, cell: Cell) -> np.ndarray:
        """One number for each example, NaN where the metric has none."""
        method, metric = cell
        x, y, masks = self.examples.x, self.examples.y, self.examples.masks
        make = self.examples.bound(method)

        def explain(params: Any = None) -> Callable[..., Any]:
            return make(self.examples.score(metric.explained, params))

        score = self.examples.score(metric.of)
        match metric.made_from:
            case "weights":  # one draw of the weights for all examples: intervals are over examples alone
                measure = metric.spec(explain, key=_key(metric.name))
                return self._over_examples(lambda x, y: measure(self.examples.network.params, x, y), "")(x, y)
            case "explain":
                return self._over_examples(metric.spec(explain()), metric.name)(x, y)
            case "recompute":
                measure = metric.spec(score, recompute=explain())
                return self._over_examples(measure, metric.name)(self._heat(cell, explain), x, y)
            case "score":
                return self._shared(metric, score)(self._heat(cell, explain), x, y)
            case "masks":
                return self._shared(metric)(self._heat(cell, explain), masks)
            case "nothing":
                return self._shared(metric)(self._heat(cell, explain))

    def _heat(self, cell: Cell, explain: Callable[[], Callable[..., Any]]) -> np.ndarray:
        """The maps, as the metric reads them."""
        method, metric = cell
        x, at = self.examples.x, (method.name, metric.explained)
        if at not in self._maps:
            if any(name != method.name for name, _ in self._maps):
                self._maps.clear()
            self._maps[at] = self._over_examples(explain(), "explanation")(x, self.examples.y)
        heat = self._maps[at]
        if metric.reads == "evidence" and _is_in(UNSIGNED, method):
            return np.abs(heat)
        if metric.reads == "slope" and not _is_in(SLOPES, method):
            return heat.reshape(*heat.shape[:3], -1) / np.where(
                x == 0, np.inf, x
            )  # nothing is removed where x is black
        return heat

    def _shared(self, metric: Metric, *score: Callable[..., Any]) -> Callable[..., np.ndarray]:
        if metric.name not in self._measures:
            self._measures[metric.name] = self._over_examples(metric.spec(*score), metric.name)
        return self._measures[metric.name]

    def _over_examples(self, f: Callable[..., Any], name: str) -> Callable[..., np.ndarray]:
        run = jx.batched(f, batch_size=self._batch_size, progress=False, on_nan="mark")
        key = _key(name) if getattr(f, "needs_key", False) else None
        return lambda *args: np.asarray(run(*args, key=key))


def _key(name: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(SEED), zlib.crc32(name.encode()))
