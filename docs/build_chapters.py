"""Build the chapters: each `chapters/*.py` (jupytext percent script, the source) becomes a notebook with its outputs.

    python docs/build_chapters.py            # all chapters
    python docs/build_chapters.py 2.1 3.4    # those whose names start so
    python docs/build_chapters.py --check    # run those that something changed for, write nothing
    python docs/build_chapters.py --check --full    # run all again, write nothing

A chapter asserts its own proofs, so running it is its test. `--check` fails if a cell raises, or if a notebook's cells
are not those of its script. Each notebook keeps a fingerprint of what made its outputs: its script, code and data of
jaxplain without comments and docstrings, and the versions of JAX. `--check` only executes notebooks whose fingerprint
differs. Needs `pip install jaxplain[docs]`.
"""

import argparse
import ast
import functools
import hashlib
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import jupytext
import matplotlib.font_manager  # noqa: F401 - builds its font cache here, which would print a line into a page
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

CHAPTERS = Path(__file__).resolve().parent / "chapters"
MAX_BYTES = 1_000_000
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python"},
}
# What must not be in a page: where this machine keeps its files.
OURS = "|".join(re.escape(str(path)) for path in (Path.home(), sys.prefix, CHAPTERS.parents[1]))
PRIVATE = re.compile(rf"/tmp/|/home/|/Users/|site-packages|({OURS})/")


class ThisPython(KernelSpecManager):
    """A kernel of the Python that runs this script, whatever kernels are installed."""

    def get_kernel_spec(self, _name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def _without_docstrings(source: str) -> str:
    """The code as a program sees it: no comments, no docstrings, one layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return ast.unparse(tree)


@functools.cache
def _package() -> bytes:
    """A digest of jaxplain: its code, and its data."""
    digest = hashlib.sha256()
    folder = CHAPTERS.parents[1] / "jaxplain"
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".npz"):
            content = _without_docstrings(path.read_text()).encode() if path.suffix == ".py" else path.read_bytes()
            digest.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(content).digest())
    return digest.digest()


def fingerprint(script: Path) -> str:
    """Of all that decides about a chapter's outputs."""
    versions = f"jax {version('jax')} jaxlib {version('jaxlib')}".encode()
    return hashlib.sha256(script.read_bytes() + _package() + versions).hexdigest()[:16]


def read(script: Path) -> NotebookNode:
    """The script's cells, with ids and metadata that do not change from run to run."""
    notebook = jupytext.read(script)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02}", NotebookNode()
    return notebook


def execute(notebook: NotebookNode) -> None:
    """Fill in the outputs, in a fresh kernel and an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    # What the front end remembers of the session is not part of the page.
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()


def problems(notebook: NotebookNode) -> list[str]:
    """What a page must not show: warnings and paths of this machine."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"{cell.id} writes to stderr: {text[:300]!r}")
            elif PRIVATE.search(text):
                found.append(f"{cell.id} shows a path: {text[:300]!r}")
    return found


def is_current(script: Path, path: Path) -> bool:
    """Whether the notebook at `path` was made by this script, this package and these versions."""
    if not path.exists():
        return False
    return nbformat.read(path, as_version=4).metadata.get("made_from") == fingerprint(script)


def out_of_date(notebook: NotebookNode, path: Path) -> list[str]:
    """How the notebook at `path` differs from its script, outputs apart."""
    if not path.exists():
        return ["there is no notebook"]
    committed = nbformat.read(path, as_version=4)
    ours, theirs = ([(cell.cell_type, cell.source) for cell in n.cells] for n in (notebook, committed))
    return [] if ours == theirs else ["the notebook's cells are not those of the script"]


def build(script: Path, check: bool, full: bool) -> bool:
    """Build or check one chapter; say how it went; return whether it went well."""
    path = script.with_suffix(".ipynb")
    notebook = read(script)
    if check and not full and is_current(script, path) and not out_of_date(notebook, path):
        print(f"ok   {script.stem:32} as it was made", flush=True)
        return True
    start = time.perf_counter()
    try:
        execute(notebook)
        wrong = problems(notebook)
    except CellExecutionError as error:
        wrong = [str(error)]
    seconds = time.perf_counter() - start
    notebook.metadata["made_from"] = fingerprint(script)
    content = nbformat.writes(notebook) + "\n"
    if check:
        wrong += out_of_date(notebook, path)
    elif len(content.encode()) > MAX_BYTES:
        wrong.append(f"the notebook is larger than {MAX_BYTES:,} bytes: draw at a lower dpi")
    if not check and not wrong:
        nbformat.validate(notebook)
        path.write_text(content, encoding="utf-8")
    print(
        f"{'FAIL' if wrong else 'ok':4} {script.stem:32} {seconds:5.1f} s  {len(content.encode()) / 1000:6.0f} kB",
        flush=True,
    )
    for line in wrong:
        print("     " + line, file=sys.stderr)
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of chapter names, e.g. 2.1; all chapters if none")
    parser.add_argument("--check", action="store_true", help="execute and compare, write nothing")
    parser.add_argument("--full", action="store_true", help="with --check: execute unchanged chapters too")
    args = parser.parse_args()
    scripts = [
        script
        for script in sorted(CHAPTERS.glob("[0-9]*.py"))
        if not args.names or script.name.startswith(tuple(args.names))
    ]
    if not scripts:
        parser.error(f"no chapter's name starts with {' or '.join(args.names)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the same pictures everywhere
    if args.check:
        os.environ.setdefault("CHAPTER_SCENES", "50")  # in place of a thousand
        # Compiling takes most of the time: see tests/conftest.py.
        emitters = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1" + emitters)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, where ipywidgets is not installed
    orphans = (
        [] if args.names else sorted(p.name for p in CHAPTERS.glob("*.ipynb") if not p.with_suffix(".py").exists())
    )
    for name in orphans:
        print(f"FAIL {name} has no script", file=sys.stderr)
    # Each chapter has a process of its own; compiling takes one core, so two of them share a machine well.
    with ThreadPoolExecutor(2 if args.check else 1) as pool:
        results = list(pool.map(lambda script: build(script, args.check, args.full), scripts))
    sys.exit(0 if all(results) and not orphans else 1)


if __name__ == "__main__":
    main()
