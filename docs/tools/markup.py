"""Markdown for the site: docstrings, links that leave the folder, and names that become links."""

import posixpath
import re
import textwrap
from collections.abc import Callable, Mapping

LABELS = ("Guarantees", "Cost", "Costs", "Info", "Errors", "Differs from", "Misleads", "Units", "Known limits")
LABEL = re.compile(rf"(?:^|(?<=[.;:)]\s)|(?<=\$\.\s))({'|'.join(LABELS)}): ", re.M)
FIELDS = ("Arguments", "Attributes", "Raises")
BLOCKS = ("Returns", "References", "Example", "Examples")
HEADING = re.compile(rf"^({'|'.join(FIELDS + BLOCKS)}):(?: (.*))?$")
AS_IN = re.compile(r"((?:^|\s)as in )`(\w+)`")
FENCE = re.compile(r"^\s*(```+|~~~+)")


def docstring(text: str) -> str:
    """A docstring of the package as Markdown.

    `Arguments:`, `Attributes:` and `Raises:` become definition lists, `Example:` a block of code, `References:` a list.
    Labels within a paragraph (`Guarantees: …`, `Cost: …`) start a new one.
    """
    lines, parts, paragraph = apart(text).splitlines(), [], []

    def end_paragraph() -> None:
        if paragraph:
            parts.append(labeled("\n".join(paragraph)))
            paragraph.clear()

    while lines:
        line = lines.pop(0)
        heading = HEADING.match(line)
        if heading and (not heading.group(2) or heading.group(1).startswith("Example")):
            end_paragraph()
            block = []
            while lines and (not lines[0].strip() or lines[0].startswith(" ")):
                block.append(lines.pop(0))
            parts.append(section(heading.group(1), heading.group(2), textwrap.dedent("\n".join(block)).strip("\n")))
        elif not line.strip():
            end_paragraph()
        else:
            paragraph.append(line)
    end_paragraph()
    return "\n\n".join(parts) + "\n"


def apart(text: str) -> str:
    """Adds an empty line between two displayed equations."""
    return re.sub(r"\$\$[ \t]*\n([ \t]*)\$\$(?=\S)", r"$$\n\n\1$$", text)


def labeled(paragraph: str) -> str:
    """A paragraph, split before each label, with the labels in bold."""
    starts = [match.start() for match in LABEL.finditer(paragraph)]
    if not starts:
        return paragraph
    pieces = [paragraph[: starts[0]]] + [paragraph[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    found = []
    for piece in filter(str.strip, pieces):
        flat = "\n".join(line.strip() for line in piece.strip().splitlines()) if LABEL.match(piece) else piece.strip()
        found.append(LABEL.sub(lambda match: f"**{match.group(1)}:** ", flat, count=1) if LABEL.match(flat) else flat)
    return "\n\n".join(found)


def section(name: str, intro: str | None, block: str) -> str:
    """One section with an indented block."""
    if name in FIELDS:
        return f"**{name}**\n\n{definitions(block)}"
    if name == "References":
        return f"**{name}**\n\n" + "\n".join(f"- {linked(entry)}" for entry in references(block))
    if name.startswith("Example"):
        intro = f"**{name}:** {intro}" if intro else f"**{name}**"
        return f"{intro}\n\n```pycon\n{block}\n```"
    return f"**{name}:** {block}"


def definitions(block: str) -> str:
    """`name, name: text` entries, with indented continuations, as a definition list."""
    entries: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        start = re.match(r"^([*\w`][\w*,` ]*): ?(.*)$", line)
        if start and not line.startswith(" "):
            entries.append((start.group(1), [start.group(2)]))
        elif entries:
            entries[-1][1].append(line)
        else:
            return block
    found = []
    for names, lines in entries:
        term = ", ".join(f"`{name.strip(' `')}`" for name in names.split(","))
        body = (lines[0] + "\n" + textwrap.dedent("\n".join(lines[1:]))).strip()
        found.append(f"{term}\n:   " + textwrap.indent(body, "    ").strip())
    return "\n\n".join(found)


def references(block: str) -> list[str]:
    """The entries of a list of references: one ends where a line ends in a full stop and the entry has a year."""
    entries, current = [], []
    for line in block.splitlines():
        current.append(line.strip())
        if line.rstrip().endswith(".") and re.search(r"\b(19|20)\d\d\b", " ".join(current)):
            entries.append(" ".join(current))
            current = []
    return entries + ([" ".join(current)] if current else [])


def linked(reference: str) -> str:
    """A reference with its arXiv number as a link."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """`change` applied to the lines outside of code blocks."""
    found, fence = [], None
    for line in markdown.split("\n"):
        mark = FENCE.match(line)
        if mark and fence is None:
            fence = mark.group(1)
        elif mark and fence is not None and mark.group(1).startswith(fence):
            fence = None
        elif fence is None:
            line = change(line)
        found.append(line)
    return "\n".join(found)


def with_names(markdown: str, known: Mapping[str, str], bare: Mapping[str, str] | None = None, here: str = "") -> str:
    """Links `jx.name` in code, and the given bare names, to their documentation; `here` is the name of this page."""

    def link(match: re.Match) -> str:
        target = known.get(match.group(1)) or (bare or {}).get(match.group(0).strip("`"))
        return match.group(0) if target is None or target == here else f"[{match.group(0)}][{target}]"

    words = {name.removeprefix("jx.") for name in known}

    def change(line: str) -> str:
        line = AS_IN.sub(
            lambda m: f"{m.group(1)}[`{m.group(2)}`][jaxplain.{m.group(2)}]" if m.group(2) in words else m.group(0),
            line,
        )
        if line.startswith(("#", ":::")) or line.lstrip().startswith((">>>", "...")):
            return line
        return re.sub(r"(?<![\[`])`((?:jx\.)?[A-Za-z_][\w.]*)(?:\([^`]*\))?`(?![`\]])", link, line)

    return outside_code(markdown, change)


# Where files of the repository are on the site, other than those of docs/.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "docs/chapters": "tutorial.md",
}
ON_SITE = {site: repository for repository, site in ELSEWHERE.items() if site not in ("index.md", "tutorial.md")}


def with_links(markdown: str, page: str) -> str:
    """Relative links of the repository as links of the site, or only their text if the site has no such page."""
    home = posixpath.dirname(ON_SITE.get(page, f"docs/{page}"))

    def move(match: re.Match) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if re.match(r"[a-z]+:|/", target) or (target.endswith(".ipynb") and text == "Notebook"):
            return match.group(0)
        place = posixpath.normpath(posixpath.join(home, target)).rstrip("/")
        there = ELSEWHERE.get(place)
        if there is None and place.startswith("docs/"):
            there = re.sub(r"\.ipynb$", ".md", place.removeprefix("docs/"))
        if there is None:
            return text
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"

    # A link may span two lines, so blocks of prose are changed as a whole.
    pieces = re.split(r"(^\s*(?:```+|~~~+).*?^\s*(?:```+|~~~+)[ \t]*$)", markdown, flags=re.M | re.S)
    link = re.compile(r"(?<!!)\[([^\[\]]*(?:\[[^\]]*\][^\[\]]*)?)\]\(([^)#\s]+)(#[^)\s]*)?\)")
    return "".join(piece if i % 2 else link.sub(move, piece) for i, piece in enumerate(pieces))


def without_hidden(markdown: str) -> str:
    """Without HTML comments, i.e. hidden setups of snippets and marks for `run_snippets`."""
    return re.sub(r"^<!--.*?-->\n?", "", markdown, flags=re.M | re.S)


def with_outputs(markdown: str) -> str:
    """Marks blocks of text, which show the output of code, for a separate style."""
    return re.sub(r"^( *)(```+)text$", r"\1\2 { .text .output }", markdown, flags=re.M)
