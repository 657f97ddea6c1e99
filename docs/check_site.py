"""Check the built site: links and pictures lead somewhere, doctests are code. `python docs/check_site.py site`."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.doctest_quoted = False
        self._quotes = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, pictures, scripts and ids."""
        found = dict(attrs)
        self._quotes += tag == "blockquote"
        # Markdown takes the >>> of a doctest for a quotation in a quotation in a quotation.
        self.doctest_quoted |= self._quotes == 3
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        self.links += [value for name in ("href", "src") if (value := found.get(name))]

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a quotation."""
        self._quotes -= tag == "blockquote"


def broken(site: Path) -> list[str]:
    """A line for each problem. 404.html is shown at any address, so its links are not checked."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    lines = []
    for path, page in pages.items():
        if page.doctest_quoted:
            lines.append(f"{path.relative_to(site)} shows a doctest as a quotation")
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                lines.append(f"{path.relative_to(site)}: {link} is not there")
            elif parts.fragment and target.suffix == ".html":
                place = site / target.relative_to(site.resolve())
                anchors = (pages.get(place) or Page(target.read_text())).anchors
                if unquote(parts.fragment) not in anchors:
                    lines.append(f"{path.relative_to(site)}: {link} has no such place")
    return lines


if __name__ == "__main__":
    found = broken(Path(sys.argv[1]))
    sys.exit("\n".join(found[:50]) or 0)
