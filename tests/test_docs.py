"""The documentation site: every public name has a page, docstrings become Markdown, snippets are run or say why not."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import jaxplain as jx

REPOSITORY = Path(jx.__file__).parents[1]
DOCS = REPOSITORY / "docs"
sys.path[:0] = [str(DOCS), str(DOCS / "tools")]

markup, pages, run_snippets = map(importlib.import_module, ("markup", "pages", "run_snippets"))

WRITTEN = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
SITE = set(WRITTEN) | set(pages.reference()) | set(markup.ON_SITE)
SITE |= {f"chapters/{path.stem}.md" for path in pages.notebooks()}


def _public():
    return [name for name in dir(jx) if not name.startswith("_") and not inspect.ismodule(getattr(jx, name))]


def _documented():
    return set(re.findall(r"^::: (\S+)$", "\n".join(pages.reference().values()), re.M))


def _entries(navigation):
    for entry in navigation:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, list):
            yield from _entries(entry)
        else:
            yield from _entries(entry.values())


def test_every_public_name_has_a_page():
    missing = {f"jaxplain.{name}" for name in _public()} - _documented()
    assert not missing, f"no page in the reference: {missing}"


def test_every_method_has_a_page_of_its_own():
    for name in _public():
        if inspect.isfunction(getattr(jx, name)):
            assert any(page.endswith(f"/{name}.md") for page in pages.reference()), name


@pytest.mark.parametrize("name", list(pages.modules()))
def test_every_member_of_a_module_has_its_place(name):
    module = pages.modules()[name]
    assert pages.members(module)
    assert {pages.identifier(module, member) for member in pages.members(module)} <= _documented()


def test_all_metrics_are_members():
    names = {name for name in jx.metrics.__all__ if not inspect.ismodule(getattr(jx.metrics, name))}
    assert set(pages.members(jx.metrics)) == names
    assert {"metrics.removal", "metrics.neighbors", "metrics.similarity", "metrics.controls"} <= set(pages.modules())


def test_a_module_of_no_group_makes_a_group(monkeypatch):
    monkeypatch.setattr(pages, "GROUPS", [group for group in pages.GROUPS if group[0] != "deeplift"])
    assert [group.members for group in pages.groups.__wrapped__() if group.name == "deeplift"] == [["deeplift"]]


def test_the_navigation_of_the_reference_is_complete():
    assert set(_entries(pages.reference_navigation())) == {*pages.reference(), "reference.md"}


def test_every_written_page_is_in_the_navigation():
    listed = re.findall(r"\S+\.md", (REPOSITORY / "mkdocs.yml").read_text())
    listed += list(_entries(pages.chapter_navigation())) + list(_entries(pages.reference_navigation()))
    assert WRITTEN.keys() <= set(listed)


def test_every_chapter_is_a_page_with_its_pictures():
    assert set(_entries(pages.chapter_navigation())) == {
        "tutorial.md",
        *(f"chapters/{path.stem}.md" for path in (DOCS / "chapters").glob("*.ipynb")),
    }
    for path in pages.notebooks():
        text, pictures = pages.chapter(path)
        assert text.startswith(f"# {pages.title(path)}\n"), path
        assert pictures.keys() == set(re.findall(r"\]\((\S+\.png)\)", text)), path
        assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_links_of_all_pages_lead_to_pages():
    texts = {page: path.read_text() for page, path in WRITTEN.items()}
    texts |= {site: (REPOSITORY / source).read_text() for site, source in markup.ON_SITE.items()}
    texts |= {f"chapters/{path.stem}.md": pages.chapter(path)[0] for path in pages.notebooks()}
    for page, text in texts.items():
        for target in re.findall(r"\]\(([^)#:\s]+\.md)(?:#[^)]*)?\)", markup.with_links(text, page)):
            place = (DOCS / page).parent.joinpath(target).resolve().relative_to(DOCS.resolve()).as_posix()
            assert place in SITE, f"{page}: {target}"


def test_names_in_code_become_links_on_the_site_that_exist():
    for page, path in WRITTEN.items():
        for name in re.findall(r"`(jx\.[\w.]+)", markup.without_hidden(path.read_text())):
            if name not in ("jx.method",):
                assert name in pages.where(), f"{page}: there is no {name}"
    known = {"jx.lrp": "jaxplain.lrp"}
    assert markup.with_names("`jx.lrp(f)`, `x`", known) == "[`jx.lrp(f)`][jaxplain.lrp], `x`"
    assert markup.with_names("[`jx.lrp`](a.md)\n# `jx.lrp`\n", known) == "[`jx.lrp`](a.md)\n# `jx.lrp`\n"
    assert markup.with_names("```python\n`jx.lrp`\n```", known) == "```python\n`jx.lrp`\n```"
    assert markup.with_names("`jx.lrp`", known, here="jaxplain.lrp") == "`jx.lrp`"
    assert markup.with_names("as in `lrp`.", known) == "as in [`lrp`][jaxplain.lrp]."


def test_pages_name_no_machine():
    private = re.compile(r"/(work|root|home|tmp|Users)/|site-packages")
    for path in [*WRITTEN.values(), REPOSITORY / "mkdocs.yml", *(DOCS / "assets").glob("*.*s")]:
        assert not private.search(path.read_text()), path


def test_labels_get_paragraphs():
    text = "Sum.\n\nGuarantees: linear, $a$. Cost: 1 gradient. Info: value,\ngap.\nDiffers from: Captum. Cost is low."
    assert markup.docstring(text).split("\n\n") == [
        "Sum.",
        "**Guarantees:** linear, $a$.",
        "**Cost:** 1 gradient.",
        "**Info:** value,\ngap.",
        "**Differs from:** Captum. Cost is low.\n",
    ]


def test_arguments_become_definitions():
    text = "Arguments:\n    f: a score:\n        of x.\n\n        * one\n    a, b: as there.\n    *rest: more."
    text += "\n\nReturns:\n    x."
    assert markup.docstring(text) == (
        "**Arguments**\n\n`f`\n:   a score:\n    of x.\n\n    * one\n\n"
        "`a`, `b`\n:   as there.\n\n`*rest`\n:   more.\n\n**Returns:** x.\n"
    )


def test_references_become_a_list():
    text = "References:\n    A et al., One,\n    NeurIPS 2019.\n    B, Two, arXiv:1234.56789, 2020 (more)."
    assert markup.docstring(text) == (
        "**References**\n\n- A et al., One, NeurIPS 2019.\n"
        "- B, Two, [arXiv:1234.56789](https://arxiv.org/abs/1234.56789), 2020 (more).\n"
    )


def test_examples_become_blocks():
    assert markup.docstring("Example: of it:\n    >>> 1\n    1\n") == "**Example:** of it:\n\n```pycon\n>>> 1\n1\n```\n"


@pytest.mark.parametrize("name", _public())
def test_docstrings_are_in_the_form_that_the_site_knows(name):
    text = inspect.getdoc(getattr(jx, name)) or ""
    found = re.sub(r"```.*?```", "", markup.docstring(text), flags=re.S)
    assert not re.search(rf"^({'|'.join(markup.FIELDS + markup.BLOCKS)}):", found, re.M), "a section was not recognized"
    assert not re.search(rf"(?<!\*)\b({'|'.join(markup.LABELS)}): ", found), "a label was not recognized"
    assert re.sub(r"`[^`]*`", "", found).count("$") % 2 == 0


@pytest.mark.parametrize("page", WRITTEN)
def test_snippets_compile(page):
    for block in run_snippets.blocks(WRITTEN[page].read_text()):
        compile(block.code, page, "exec")


def test_a_snippet_is_skipped_for_a_reason_only():
    with pytest.raises(ValueError, match="needs a word"):
        run_snippets.blocks("<!-- not run: -->\n```python\n1\n```")
    with pytest.raises(ValueError, match="no block after it"):
        run_snippets.blocks("<!-- not run: slow -->\ntext")
    (block,) = run_snippets.blocks("<!-- not run: slow -->\n```python\n1 / 0\n```")
    assert block.reason == "slow" and run_snippets.run(block, "page", {}) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```python\nprint(1)\n```\n\n```text\n1\n```", None),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", "printed"),
        ("```python\nprint('a 3 b')\n```\n\n```text\na … b\n```", None),
        ("```python\nprint(1)\n```\ntext\n```text\n2\n```", None),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("<!-- raises: ZeroDivisionError -->\n```python\n1 / 0\n```", None),
        ("<!-- raises: ZeroDivisionError -->\n```python\n1 / 0\n```\n\n```text\ndivided\n```", "the message is"),
        ("<!-- raises: ZeroDivisionError -->\n```python\n1\n```", "raised nothing"),
        ("- item\n\n    ```python\n    for i in (1,):\n        print(i)\n    ```", None),
    ],
)
def test_snippets_are_compared_with_what_they_print(text, wrong):
    (block,) = run_snippets.blocks(text)
    found = run_snippets.run(block, "page", {})
    assert found is None if wrong is None else wrong in found


def test_setups_are_run_and_hidden():
    text = "<!-- setup\na = 1\n-->\n\n```python\nassert a == 1\n```\n"
    namespace = {}
    assert [run_snippets.run(block, "page", namespace) for block in run_snippets.blocks(text)] == [None, None]
    assert "setup" not in markup.without_hidden(text)
