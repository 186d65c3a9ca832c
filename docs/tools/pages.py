"""The pages of the site: the public names of jaxplain in groups, and the chapters. Independent of MkDocs and griffe."""

import inspect
import json
import re
import sys
from base64 import b64decode
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

import markup

import jaxplain as jx

DOCS = Path(__file__).resolve().parents[1]
CHAPTERS = DOCS / "chapters"

# Groups of functions: name, title, and the modules that define them. Names of other modules get their own groups.
GROUPS: list[tuple[str, str, tuple[str, ...]]] = [
    ("scores", "Scores and helpers", ("_scores", "_explainer", "_references", "_batch")),
    ("gradient", "Gradients", ("methods._gradient",)),
    ("path", "Integrated gradients", ("methods._path",)),
    ("taylor", "Taylor decomposition", ("methods._taylor",)),
    ("noise", "Averages over noise", ("methods._noise",)),
    ("deeplift", "DeepLIFT", ("methods._deeplift",)),
    ("propagation", "Propagation", ("methods._propagation",)),
    ("cam", "Class activation maps", ("methods._cam", "_cam_layer")),
    ("perturbation", "Perturbation", ("methods._perturbation", "_groups")),
    ("inside", "Layers and inspection", ("_split", "methods._conductance", "_inspection", "_layers.table")),
    ("prototype", "Activation maximization", ("prototypes._activation_maximization",)),
]
# Titles of the modules that have one page for all their names. Any other public module also gets a page.
MODULES = {
    "rules": "Rules",
    "composites": "Composites",
    "prototypes": "Parts of prototypes",
    "experts": "Experts",
    "metrics": "Metrics",
    "metrics.removal": "Metrics: removal",
    "metrics.neighbors": "Metrics: neighbors",
    "metrics.similarity": "Metrics: similarity",
    "metrics.controls": "Metrics: controls",
    "plot": "Pictures",
    "nnx": "Names for Flax NNX",
    "datasets": "Data",
    "zoo": "Networks",
}
PARTS = {
    "1": "Prototypes",
    "2": "Decomposition",
    "3": "Gradients and signals",
    "4": "Class activation maps",
    "5": "Quality of explanations",
}


@dataclass
class Group:
    """A group of functions and classes, with a page for each."""

    name: str
    title: str
    text: str
    members: list[str] = field(default_factory=list)

    @property
    def index(self) -> str:
        return f"reference/{self.name}/index.md"

    def page(self, member: str) -> str:
        return f"reference/{self.name}/{member}.md"


def functions() -> dict[str, object]:
    """The public functions and classes of the package itself, without errors."""
    return {
        name: thing
        for name in sorted(dir(jx), key=str.lower)
        if not name.startswith("_")
        and not inspect.ismodule(thing := getattr(jx, name))
        and not (inspect.isclass(thing) and issubclass(thing, jx.JaxplainError))
    }


def errors() -> list[str]:
    """The errors, base first."""
    found = [n for n in dir(jx) if inspect.isclass(e := getattr(jx, n)) and issubclass(e, jx.JaxplainError)]
    return sorted(found, key=lambda name: (name != "JaxplainError", name))


@cache
def modules() -> dict[str, ModuleType]:
    """The public modules, and those in them, in the order of `MODULES`. Modules without public members are left out."""
    found = {name: module for name, module in _modules_in(jx).items() if members(module)}
    for name, package in list(found.items()):
        if hasattr(package, "__all__"):
            inner = _modules_in(package)
            found |= {f"{name}.{n}": inner[n] for n in package.__all__ if n in inner}
    order = list(MODULES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _modules_in(package: ModuleType) -> dict[str, ModuleType]:
    # Some are imported on first use, so they are in `dir` but not in `vars`.
    found = {name: getattr(package, name) for name in dir(package) if not name.startswith("_")}
    return {n: m for n, m in found.items() if inspect.ismodule(m) and m.__name__.startswith("jaxplain.")}


def _page(name: str) -> str:
    """The page of a public module."""
    return f"reference/{name.replace('.', '/')}.md"


@cache
def members(module: ModuleType) -> list[str]:
    """The public functions and classes of a module: its `__all__`, or those that it defines or re-exports."""
    # A package re-exports the names of its files; a file has its own names.
    home = "jaxplain" if hasattr(module, "__all__") or hasattr(module, "__path__") else module.__name__
    names = [
        name
        for name in getattr(module, "__all__", vars(module))
        if not name.startswith("_")
        and (inspect.isfunction(thing := getattr(module, name)) or inspect.isclass(thing))
        and thing.__module__.startswith(home)
    ]

    def place(name: str) -> tuple[bool, str, bool, int]:
        """File by file, functions before classes; the module's own names before those from elsewhere."""
        thing = getattr(module, name)
        return (
            not thing.__module__.startswith(module.__name__),
            thing.__module__,
            name[0].isupper(),
            inspect.getsourcelines(thing)[1],
        )

    return sorted(names, key=place)


@cache
def groups() -> list[Group]:
    """The groups of functions, in reading order, with their members; none is left out."""
    of_module = {f"jaxplain.{module}": name for name, _, listed in GROUPS for module in listed}
    found = {name: Group(name, title, "") for name, title, _ in GROUPS}
    for name, thing in functions().items():
        home = getattr(thing, "__module__", None) or type(thing).__module__
        group = of_module.get(home)
        if group is None:
            group = home.rsplit(".", 1)[-1].strip("_")
            found.setdefault(group, Group(group, group.replace("_", " ").capitalize(), ""))
        found[group].members.append(name)
    for group in found.values():
        group.members.sort(key=lambda name: (name[0].isupper(), *_place(getattr(jx, name), list(of_module))))
        homes = [home for home, name in of_module.items() if name == group.name and home.startswith("jaxplain.methods")]
        if len(homes) == 1 or group.name == "cam":
            group.text = _docstring_of_module(homes[0]) if homes else ""
    return [group for group in found.values() if group.members]


def _place(thing: object, homes: list[str]) -> tuple[int, int]:
    """Where a function or class is defined: as its authors ordered them."""
    home = getattr(thing, "__module__", "")
    return (homes.index(home) if home in homes else len(homes), inspect.getsourcelines(thing)[1])


def _docstring_of_module(name: str) -> str:
    import importlib

    try:
        return inspect.getdoc(importlib.import_module(name)) or ""
    except ImportError:
        return ""


def summary(thing: object) -> str:
    """The first paragraph of a docstring on one line, for a table."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", r"\|")


def identifier(module: ModuleType, member: str) -> str:
    """The dotted name under which griffe finds a member: that of its definition, if it shares its name with a file."""
    public = f"{module.__name__}.{member}"
    thing = getattr(module, member)
    public = public.replace("jaxplain.rules.composites", "jaxplain.composites")
    return f"{thing.__module__}.{member}" if public in sys.modules else public


@cache
def where() -> dict[str, str]:
    """{dotted public name: identifier of its heading in the reference}."""
    found = {f"jx.{name}": f"jaxplain.{name}" for group in groups() for name in group.members}
    found |= {f"jx.{name}": f"jaxplain.{name}" for name in errors()}
    for name, module in modules().items():
        found[f"jx.{name}"] = f"jaxplain.{name}"
        found |= {f"jx.{name}.{member}": identifier(module, member) for member in members(module)}
    return found


def directive(identifier: str, *, level: int, heading: str, **options: object) -> str:
    """The line that mkdocstrings replaces by the documentation of `identifier`."""
    settings = {"heading_level": level, "heading": heading, "toc_label": heading.rsplit(".", 1)[-1], **options}
    lines = [f"        {key}: {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join([f"::: {identifier}", "    options:", *lines, ""])


@cache
def reference() -> dict[str, str]:
    """{page: its Markdown} of the reference without its first page, in the order of the navigation."""
    pages = {}
    for group in groups():
        rows = [f"| [`{m}`]({m}.md) | {summary(getattr(jx, m))} |" for m in group.members]
        table = "\n".join(["| | |", "| --- | --- |", *rows])
        pages[group.index] = f"# {group.title}\n\n{group.text}\n\n{table}\n"
        for member in group.members:
            pages[group.page(member)] = directive(f"jaxplain.{member}", level=1, heading=f"jx.{member}")
    for name, module in modules().items():
        parts = [directive(f"jaxplain.{name}", level=1, heading=f"jx.{name}", members=False)]
        parts += [directive(identifier(module, m), level=2, heading=f"jx.{name}.{m}") for m in members(module)]
        pages[_page(name)] = "\n".join(parts)
    text = "# Errors\n\nEvery intended error of the library is a `jx.JaxplainError` and the matching built-in error."
    text += " A message says what is wrong and where, what was given and needed, why, and what to paste instead.\n\n"
    parts = [directive(f"jaxplain.{name}", level=2, heading=f"jx.{name}", show_bases=True) for name in errors()]
    pages["reference/errors.md"] = text + "\n".join(parts)
    return pages


def reference_navigation() -> list[object]:
    """The navigation of the reference."""
    entries: list[object] = ["reference.md"]
    for group in groups():
        entries.append({group.title: [group.index, *({m: group.page(m)} for m in group.members)]})
    entries += [{MODULES.get(name, name.capitalize()): _page(name)} for name in modules()]
    return [*entries, {"Errors": "reference/errors.md"}]


def reference_table() -> str:
    """All groups with their members, for the first page of the reference."""
    rows = ["| | |", "| --- | --- |"]
    for group in groups():
        names = ", ".join(f"[`{m}`]({group.page(m)})" for m in group.members)
        rows.append(f"| [{group.title}]({group.index}) | {names} |")
    for name, module in modules().items():
        names = ", ".join(f"[`{m}`]({_page(name)}#{identifier(module, m)})" for m in members(module))
        rows.append(f"| [{MODULES.get(name, name.capitalize())}]({_page(name)}) | {names} |")
    names = ", ".join(f"[`{m}`](reference/errors.md#jaxplain.{m})" for m in errors())
    return "\n".join([*rows, f"| [Errors](reference/errors.md) | {names} |"])


def notebooks() -> list[Path]:
    """The chapters, in order."""
    return sorted(CHAPTERS.glob("*.ipynb"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)[:2]])


def _cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def title(path: Path) -> str:
    """The title of a chapter."""
    return re.search(r"^# (.+)$", "".join(_cells(path)[0]["source"]), re.M).group(1)


def lead(path: Path) -> str:
    """The first sentence of a chapter: the question, where it begins with one."""
    text = "".join(_cells(path)[0]["source"]).split("\n\n")[1]
    text = re.sub(r"\*\*(?:The )?[Qq]uestion\.?\*\*[:.]?\s*", "", " ".join(text.split()))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    sentence = re.match(r".*?[.?](?= |$)", text)
    sentence = sentence.group(0) if sentence else text
    return sentence[0].upper() + sentence[1:]


def chapter_parts() -> dict[str, list[Path]]:
    """{title of a part: its chapters}."""
    parts: dict[str, list[Path]] = {}
    for path in notebooks():
        number = path.stem.split(".")[0]
        parts.setdefault(PARTS.get(number, f"Part {number}"), []).append(path)
    return parts


def chapter_navigation() -> list[object]:
    """The navigation of the tutorial."""
    parts = {t: [{title(p): f"chapters/{p.stem}.md"} for p in paths] for t, paths in chapter_parts().items()}
    return ["tutorial.md", *({t: entries} for t, entries in parts.items())]


def chapter_table() -> str:
    """All chapters with their first sentences."""
    lines = []
    for part, paths in chapter_parts().items():
        lines += [f"## {part}", "", "| | |", "| --- | --- |"]
        lines += [f"| [{title(p)}](chapters/{p.stem}.md) | {lead(p)} |" for p in paths]
        lines.append("")
    return "\n".join(lines)


def _fence(language: str, text: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}\n"


def chapter(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with its outputs, and {file name: picture}."""
    parts, pictures = [], {}
    for cell in _cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(markup.apart(source) + "\n")
            continue
        if source.strip():
            parts.append(_fence("python", source))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if output["output_type"] == "stream":
                parts.append(_output("".join(output["text"])))
            elif "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = b64decode("".join(data["image/png"]))
                parts.append(f"![Figure {len(pictures)}]({name}){{ .figure loading=lazy }}\n")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]) + "\n")
            elif "text/plain" in data:
                parts.append(_output("".join(data["text/plain"])))
    link = f'[Notebook]({path.name}){{ .notebook title="This chapter as a Jupyter notebook" }}'
    heading, _, rest = "\n".join(parts).partition("\n")
    return f"{heading}\n\n{link}\n{rest}", pictures


def _output(text: str) -> str:
    return _fence("text", text)
