"""An extension of griffe: docstrings become Markdown, and names in them become links."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

import markup
import pages


class HouseStyle(griffe.Extension):
    """Rewrite the docstring of every object that is loaded."""

    def __init__(self) -> None:
        self._known = pages.where()
        self._bare = {name: f"jaxplain.{name}" for name, thing in pages.functions().items() if "_" in name or thing}
        self._bare = {name: place for name, place in self._bare.items() if name not in AMBIGUOUS}

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = markup.docstring(obj.docstring.value)
            obj.docstring.value = markup.with_names(text, self._known, self._bare, here=f"jaxplain.{obj.name}")


# Public names that docstrings also use for other things.
AMBIGUOUS = {"references", "gradient", "layers", "check", "plan", "split", "logit"}
