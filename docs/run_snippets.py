"""Run the code on the pages of docs/: each page's ```python blocks in order, in one namespace of its own.

    python docs/run_snippets.py              # all pages
    python docs/run_snippets.py recipes      # those whose names start so

A ```text block directly after a ```python block is what that block prints; `…` stands for any text. Comments before
a block control it, and are not shown on the site:

    <!-- setup            code that runs without being shown, to the end of the comment
    <!-- raises: Name     the block raises this error; a ```text block after it is the message
    <!-- not run: why     the block is only compiled
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PART = re.compile(
    r"^<!-- (?P<mark>setup|raises:|not run:)(?P<rest>.*?)-->$"
    r"|^(?P<indent> *)```(?P<language>python|text)\n(?P<code>.*?)^ *```$",
    re.M | re.S,
)


@dataclass
class Block:
    """A block of code of a page, and what is said about it."""

    code: str
    line: int
    expected: str | None = None
    raises: str | None = None
    reason: str | None = None  # why it is not run


def blocks(text: str) -> list[Block]:
    """The blocks of a page; `ValueError` for a mark that lacks its reason or its block."""
    found: list[Block] = []
    pending: dict[str, str] = {}
    end_of_block = -1
    for part in PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        mark, rest = part["mark"], (part["rest"] or "").strip()
        if mark == "setup":
            found.append(Block(part["rest"], line))
        elif mark:
            if not rest:
                raise ValueError(f"line {line}: `{mark}` needs a word after it")
            pending[mark] = rest
        elif part["language"] == "python":
            indent = len(part["indent"])
            code = "\n".join(row[indent:] for row in part["code"].split("\n"))
            found.append(Block(code, line + 1, raises=pending.get("raises:"), reason=pending.get("not run:")))
            pending, end_of_block = {}, part.end()
        elif end_of_block >= 0 and not text[end_of_block : part.start()].strip():
            found[-1].expected = part["code"]
    if pending:
        raise ValueError(f"a comment {list(pending)} has no block after it")
    return found


def agrees(expected: str, got: str) -> bool:
    """Whether `got` is what was expected, but for spaces and what `…` stands for."""
    pattern = r".*?".join(re.escape(" ".join(piece.split())) for piece in expected.split("…"))
    return re.fullmatch(pattern.replace(r".*?", r"\s?.*?\s?"), " ".join(got.split()), re.S) is not None


def run(block: Block, page: str, namespace: dict) -> str | None:
    """Run a block; what is wrong with it, or None."""
    code = compile("\n" * (block.line - 1) + block.code, page, "exec")
    if block.reason is not None:
        return None
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    except Exception as error:
        if block.raises != type(error).__name__:
            return f"{type(error).__name__}: {error}"
        if block.expected is not None and not agrees(block.expected, str(error)):
            return f"the message is\n{error}"
        return None
    if block.raises is not None:
        return f"raised nothing, not {block.raises}"
    if block.expected is not None and not agrees(block.expected, printed.getvalue()):
        return f"printed\n{printed.getvalue()}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", help="pages whose names start so")
    wanted = tuple(parser.parse_args().pages)
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Each program runs once: compile fast rather than run fast, as in tests/conftest.py.
    emitters = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1" + emitters
    )
    warnings.simplefilter("error")
    failures = 0
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        if wanted and not page.startswith(wanted):
            continue
        found = blocks(path.read_text())
        start, namespace = time.process_time(), {"__name__": path.stem}
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for block in found:
                wrong = run(block, page, namespace)
                if wrong:
                    failures += 1
                    print(f"{page}, line {block.line}: {wrong}\n")
        with contextlib.suppress(KeyError):
            sys.modules["matplotlib.pyplot"].close("all")
        skipped = sum(block.reason is not None for block in found)
        print(f"{page}: {len(found)} blocks, {skipped} not run, {time.process_time() - start:.1f} s of CPU")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
