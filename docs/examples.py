"""For mkdocstrings: the section "Example:" of a docstring is shown as "Examples:" is, as code."""

import re
from typing import Any

import griffe


class Example(griffe.Extension):
    """Renames the section before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that is documented."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
