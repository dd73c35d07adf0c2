"""Templates to text: the only file that knows jinja2, and how numbers look in all of them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from precalloc import __version__, figures
from precalloc.units import format_energy, format_energy_per_mac

if TYPE_CHECKING:
    from jinja2 import Environment

_LONGEST = 18  # characters


def render(template: str, **values: object) -> str:
    """Fill a template of ``precalloc/templates``; what goes into HTML is escaped, what goes into Markdown is not."""
    return _environment(".html" in template).get_template(template).render(**values)


@cache
def _environment(html: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not needed by those who only compute

    environment = Environment(
        loader=PackageLoader("precalloc"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        optimized=False,  # templates are filled once a run: folding their constants takes longer than it saves
    )
    environment.filters |= {
        "energy": format_energy,
        "energy_per_mac": format_energy_per_mac,
        "cell": _cell,
        "shortened": _shortened,
    }
    environment.globals |= {"figures": figures, "version": __version__}
    return environment


def _cell(text: str) -> str:
    """Protect what would end a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _shortened(name: str) -> str:
    """Keep the end of a name that is too long to stand beside a bar: where sites differ most."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
