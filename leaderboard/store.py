"""Keeps what `metrics.compare` computes in a folder, so that a comparison resumes where it stopped.

A file holds the maps of one method, or one cell: the numbers of one method by one metric. It also holds a text of
everything that decides them. If this text differs from the one that is asked for, the numbers are computed again.

Nothing here depends on what is measured. Texts and file names come from the caller.
"""

import ast
import functools
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxplain.metrics._compare import Cells, Columns


class Entry(NamedTuple):
    """One file of a store.

    Attributes:
        folder: Name of its folder, e.g. one for each set of examples, so that several do not overwrite each other.
        names: The metric and the method, for example.
        decided_by: Text of everything that decides the numbers; long parts by their hash.
    """

    folder: str
    names: tuple[str, ...]
    decided_by: str


class Store:
    """A folder with one .npz file for each entry. Truncated or foreign files are treated as missing.

    Attributes:
        outdated: Files whose numbers were decided by something else than was asked for.
        unreadable: Truncated and foreign files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.outdated: set[Path] = set()
        self.unreadable: set[Path] = set()

    def path(self, entry: Entry) -> Path:
        slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in "__".join(entry.names))
        return self.folder / entry.folder / f"{slug}-{zlib.crc32('/'.join(entry.names).encode()):08x}.npz"

    def read(self, entry: Entry) -> np.ndarray | None:
        path = self.path(entry)
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                values, found = file["values"], str(file["decided_by"])
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError):
            self.unreadable.add(path)
            return None
        if found != entry.decided_by:
            self.outdated.add(path)
            return None
        return values

    def write(self, entry: Entry, values: np.ndarray) -> None:
        path = self.path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(
            f".{os.getpid()}.tmp"
        )  # renamed when complete, so that no file is ever half written
        with unfinished.open("wb") as file:
            np.savez(file, values=values, decided_by=np.array(entry.decided_by))
        unfinished.replace(path)


class StoredCells(Cells):
    """Maps and cells of a comparison that are read where they are stored, and otherwise computed and stored at once.

    Arguments:
        maps: Method → the entry of its maps.
        cells: (metric, method) → the entry of the cell. Other cells are left out of the comparison.
        bar: Progress bar that counts cells.
    """

    def __init__(
        self, store: Store, maps: Mapping[str, Entry], cells: Mapping[tuple[str, str], Entry], bar: tqdm
    ) -> None:
        self._store, self._maps, self._cells, self._bar = store, maps, cells, bar

    def maps(self, method: str, compute: Callable[[], Any]) -> Any:
        found = self._store.read(self._maps[method])
        if found is None:
            found = compute()
            self._store.write(self._maps[method], found)
        return found

    def columns(self, metric: str, methods: Sequence[str], compute: Columns) -> dict[str, np.ndarray]:
        entries = {method: self._cells[metric, method] for method in methods if (metric, method) in self._cells}
        found = {method: values for method, entry in entries.items() if (values := self._store.read(entry)) is not None}
        if missing := [method for method in entries if method not in found]:
            self._bar.set_postfix_str(f"{metric}: {missing[0] if len(missing) == 1 else f'{len(missing)} methods'}")
            try:
                computed = compute(missing)
            except Exception as error:
                error.add_note(f"{metric!r} of {', '.join(missing)}; everything finished before is stored")
                raise
            for method, values in computed.items():
                self._store.write(entries[method], values)
            found |= computed
        self._bar.update(len(entries))
        return found


_OPTIONS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")


def environment() -> str:
    """JAX's version, backend, and the options that numbers depend on."""
    options = (f"{option}={getattr(jax.config, option)}" for option in _OPTIONS)
    return ", ".join((jax.__version__, jax.default_backend(), *options))


def digest(arrays: Iterable[Any]) -> str:
    """A hash of the dtypes, shapes and values of arrays."""
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


@functools.cache
def hash_of_code(*paths: Path) -> str:
    """A hash of source files without comments and docstrings, so that those may be improved between two runs."""
    found = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
                body[0] = ast.Pass()  # type: ignore[index]
        found.update(f"{path.parent.name}/{path.name}\n{ast.dump(tree)}\n".encode())
    return found.hexdigest()[:16]
