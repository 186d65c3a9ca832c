"""Hooks of MkDocs: pages from docstrings, chapters and documents outside of docs/, with links that work in both."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import markup
import pages

REPOSITORY = pages.DOCS.parent
MARKS = {"<!-- all chapters -->": pages.chapter_table, "<!-- all names -->": pages.reference_table}
WIDE = ("leaderboard/methods.md", "leaderboard/protocols.md")  # their tables need the space of the table of contents
NAVIGATIONS = {"<chapters>": pages.chapter_navigation, "<reference>": pages.reference_navigation}


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that are generated."""
    for entry in config.nav:
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, str) and value in NAVIGATIONS:
                entry[name] = NAVIGATIONS[value]()
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for name, content in pages.reference().items():
        add(name, content)
    for path in pages.notebooks():
        text, pictures = pages.chapter(path)
        add(f"chapters/{path.stem}.md", text)
        for name, picture in pictures.items():
            add(f"chapters/{name}", picture)
    for name, source in markup.ON_SITE.items():
        add(name, (REPOSITORY / source).read_text())
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links, names and generated tables of a page."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    markdown = markup.with_links(markdown, page.file.src_uri)
    for mark, table in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    markdown = markup.with_outputs(markup.without_hidden(markdown))
    return markup.with_names(markdown, pages.where())
