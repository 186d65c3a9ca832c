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
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxplain as jx
from jaxplain.metrics._compare import OverMethods, stackable
from leaderboard.board import Examples, Method, Metric

SEED = 0


class Cell(NamedTuple):
    """A number for each example."""

    method: Method
    metric: Metric

    @property
    def names(self) -> tuple[str, str]:
        return self.metric.name, self.method.name

    @property
    def texts(self) -> dict[str, str]:
        return {"method": self.method.text, "metric": self.metric.text}


class Maps(NamedTuple):
    """A map for each example; `of` is the score that is explained."""

    method: Method
    of: str

    @property
    def names(self) -> tuple[str, str]:
        return f"maps of {self.of}", self.method.name

    @property
    def texts(self) -> dict[str, str]:
        return {"method": self.method.text, "explained": self.of}


class Store:
    """One .npz for each cell, and for the maps of each method, and what decided them.

    It counts if its fingerprint is the one that is asked for. A file that was cut off, or is another, is as good as none, and is listed in `unreadable`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.unreadable: list[Path] = []
        self.outdated: list[Path] = []

    def path(self, what: Cell | Maps, examples: Examples) -> Path:
        """In a folder for each network and set of examples, so that boards of several do not overwrite each other."""
        slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in "__".join(what.names))
        folder = self.folder / f"{examples.network.name}-{len(examples.x)}-{examples.digest[:8]}"
        return folder / f"{slug}-{zlib.crc32('/'.join(what.names).encode()):08x}.npz"

    def read(self, what: Cell | Maps, examples: Examples) -> np.ndarray | None:
        path = self.path(what, examples)
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                values, found = file["values"], str(file["decided_by"])
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError):
            self.unreadable.append(path)
            return None
        if found != decided_by(what, examples):
            self.outdated.append(path)
            return None
        return values

    def write(self, what: Cell | Maps, examples: Examples, values: np.ndarray) -> None:
        path = self.path(what, examples)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")  # a file is there as a whole, or not at all
        with unfinished.open("wb") as file:
            np.savez(file, values=values, decided_by=np.array(decided_by(what, examples)))
        unfinished.replace(path)


def decided_by(what: Cell | Maps, examples: Examples) -> str:
    """All that decides the numbers, written out; what is long by its hash."""
    words = what.texts | {
        "examples": examples.digest,
        "network": examples.network.name,
        "key": SEED,
        "code": _hash_of_code(),
        "jax": f"{jax.__version__}, {jax.default_backend()}, "
        + ", ".join(f"{o}={getattr(jax.config, o)}" for o in _OPTIONS),
    }
    return "\n".join(f"{name}: {value}" for name, value in words.items())


_OPTIONS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")

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
    """Of the cells of one method on one set, for one example: its maps are computed once for each score that is explained.

    Without the evaluations that all methods share.
    """
    each = cost_of_maps(cells[0].method, examples)
    maps = {cell.metric.explained for cell in cells if needs_map(cell.metric)}
    total = each.times(len(maps))
    for _, metric in cells:
        total += each.times(metric.explanations) + Cost(evaluations=0 if metric.asks_once else metric.evaluations)
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
    """Measure cells of one set of examples and store them as soon as they are finished: those of a measure of maps together, others one by one."""
    bench, found = _Bench(examples, store, batch_size), {}
    for metric in dict.fromkeys(cell.metric for cell in cells):
        methods = [cell.method for cell in cells if cell.metric == metric]
        for together in [methods] if metric.reads_maps_alone else [[m] for m in methods]:
            bar.set_postfix_str(
                f"{metric.name}: {together[0].name if len(together) == 1 else f'{len(together)} methods'}"
            )
            try:
                columns = bench.values(metric, together)
            except Exception as error:
                names = ", ".join(m.name for m in together)
                error.add_note(f"leaderboard: {metric.name!r} of {names}; what was finished before is kept")
                raise
            for method, values in zip(together, columns, strict=True):
                cell = Cell(method, metric)
                found[cell] = values.astype(float)
                store.write(cell, examples, found[cell])
            bar.update(len(together))
    return found


class _Bench:
    """One set of examples, and what its cells share: the maps.

    Draws are those of `metrics.compare`: example i and metric m have the same for every method, derived from the seed, i and the name of m alone. So what a
    metric of maps asks the score is asked once for all methods: the measure is vmapped over their maps.
    """

    def __init__(self, examples: Examples, store: Store, batch_size: int):
        self.examples, self._store = examples, store
        self._batch_size = min(batch_size, len(examples.x))
        self._maps: dict[Maps, np.ndarray] = {}

    def values(self, metric: Metric, methods: Sequence[Method]) -> list[np.ndarray]:
        """For each method one number per example, NaN where the metric has none."""
        x, y, masks = self.examples.x, self.examples.y, self.examples.masks
        score = self.examples.score(metric.of)
        match metric.made_from:
            case "weights":  # one draw of the weights for all examples: intervals are over examples alone
                (method,) = methods
                measure = metric.spec(partial(self._explain, method, metric), key=_key(metric.name))
                params = self.examples.network.params
                return [self._over_examples(lambda x, y: measure(params, x, y), "")(x, y)]
            case "explain":
                (method,) = methods
                return [self._over_examples(metric.spec(self._explain(method, metric)), metric.name)(x, y)]
            case "recompute":
                (method,) = methods
                measure = metric.spec(score, recompute=self._explain(method, metric))
                return [self._over_examples(measure, metric.name)(self._heat(method, metric), x, y)]
            case "score":
                return self._over_methods(metric.spec(score), metric, methods, x, y)
            case "masks":
                return self._over_methods(metric.spec(), metric, methods, masks)
            case "nothing":
                return self._over_methods(metric.spec(), metric, methods)

    def _explain(self, method: Method, metric: Metric, params: Any = None) -> Callable[..., Any]:
        return method.make(self.examples.score(metric.explained, params), self.examples.background)

    def _heat(self, method: Method, metric: Metric) -> np.ndarray:
        maps = Maps(method, metric.explained)
        if maps not in self._maps:
            heat = self._store.read(maps, self.examples)
            if heat is None:
                explain = self._over_examples(self._explain(method, metric), "explanation", on_nan="mark")
                heat = explain(self.examples.x, self.examples.y)
                self._store.write(maps, self.examples, heat)
            self._maps[maps] = heat
        return self._maps[maps]

    def _over_methods(
        self, measure: Callable[..., Any], metric: Metric, methods: Sequence[Method], *args: Any
    ) -> list[np.ndarray]:
        heats = {method.name: self._heat(method, metric) for method in methods}
        found: dict[str, np.ndarray] = {}
        for together in stackable(heats):  # class activation maps have no channels
            size = max(1, self._batch_size // len(together))
            run = self._over_examples(OverMethods(measure), metric.name, size)
            found |= zip(together, run(np.stack([heats[name] for name in together], axis=1), *args).T, strict=True)
        return [found[method.name] for method in methods]

    def _over_examples(
        self, f: Callable[..., Any], name: str, size: int | None = None, on_nan: Literal["mark", "keep"] = "keep"
    ) -> Callable[..., np.ndarray]:
        run = jx.batched(f, batch_size=size or self._batch_size, progress=False, on_nan=on_nan)
        key = _key(name) if getattr(f, "needs_key", False) else None
        return lambda *args: np.asarray(run(*args, key=key))


def _key(name: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(SEED), zlib.crc32(name.encode()))
