"""Docstrings are prose with formulas, not reStructuredText: bars as in ||x|| and trailing underscores are literal."""

import re
from typing import Any

from sphinx.application import Sphinx

_LITERAL = re.compile(r"(``.*?``)")
_MARKUP = re.compile(r"(\||_(?=\W|$)|\*(?=\w))")


def setup(app: Sphinx) -> dict[str, bool]:
    """Escape before napoleon reads the sections (priority 500)."""
    app.connect("autodoc-process-docstring", _escape, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _escape(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = [
        "".join(part if part.startswith("``") else _MARKUP.sub(r"\\\1", part) for part in _LITERAL.split(line))
        if not line.lstrip().startswith(">>>")
        else line
        for line in lines
    ]
