"""The site must be readable without a network: the build fails if a page would load anything from elsewhere."""

from html.parser import HTMLParser
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Check the pages once all are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class _Loads(HTMLParser):
    """Collects the addresses that a page loads by itself; links that a reader follows are free."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        address = dict(attributes).get(_LOADING.get(tag, ""))
        if address and address.startswith(("http:", "https:", "//")):
            self.addresses.append(address)


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    found = []
    for page in sorted(Path(app.outdir).rglob("*.html")):
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.name} loads {address}" for address in loads.addresses]
    for sheet in sorted(Path(app.outdir).rglob("*.css")):
        if "url(http" in sheet.read_text(encoding="utf-8").replace('"', "").replace("'", ""):
            found.append(f"{sheet.name} loads from the network")
    if found:
        raise ExtensionError("Pages that need a network: " + "; ".join(found))
