"""The frame of a report: one self-contained HTML file."""

from collections.abc import Sequence
from typing import NamedTuple

from piat_jax.analysis.html import Markup, join, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""No script runs and nothing is loaded, whatever a page contains."""
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --muted: #5b6470; --rule: #d9dee4; --soft: #f4f6f8;
  --accent: #0059a3; --line0: #0072b2; --line1: #d55e00; --line2: #009e73; --line3: #cc79a7; --line4: #e69f00;
  --line5: #56b4e9 }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ec; --muted: #9aa5b1; --rule: #313943;
  --soft: #1c2229; --accent: #7cc0ff; --line0: #4a9fe0; --line1: #ff8a45; --line2: #2fc79a; --line3: #e79cc8;
  --line4: #f2b632; --line5: #9bd8ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: .9rem; border-top: 1px solid var(--rule) }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem }
p, ul { max-width: 46rem } li { margin: .3rem 0 }
a { color: var(--accent) }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0; font-size: .95rem }
.note, figcaption, summary { color: var(--muted); font-size: .88rem; line-height: 1.45 }
.note { margin: .35rem 0 } figcaption .note { margin: .3rem 0 0 }
.wide { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .34rem .75rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap }
th { vertical-align: bottom; font-weight: 600; color: var(--muted); border-bottom-color: var(--muted) }
.label { text-align: left }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper); padding-left: 0 }
.words td { text-align: left; vertical-align: top }
tbody tr:hover td { background: var(--soft) }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
figure { margin: 1rem 0; min-width: 0 }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem }
.figures.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)) }
svg { display: block; height: auto; max-width: 100% }
svg text { fill: var(--ink) } svg * { stroke-linejoin: round; stroke-linecap: butt }
svg image { image-rendering: pixelated }
figure.wide .drawing { overflow-x: auto } figure.wide svg { max-width: none }
@media (max-width: 40rem) { body { padding: 1rem .9rem 3rem; font-size: 15px } h1 { font-size: 1.4rem }
  table { font-size: .84rem } th, td { padding: .3rem .5rem }
  td:first-child { max-width: 9.5rem; white-space: normal } }
@media print { nav { display: none } .wide { overflow: visible } h2, figure, tr { break-inside: avoid } }
"""


class Section(NamedTuple):
    """A part of the page; one without content is left out."""

    name: str  # its anchor
    title: str
    content: Sequence[Markup]


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The complete file.

    Args:
      title: of the page.
      about: the line below it.
      sections: in order.

    >>> text = page("a < b", "", [Section("one", "One", [tag("p", "<script>")]), Section("two", "Two", [])])
    >>> "<h1>a &lt; b</h1>" in text, "&lt;script&gt;" in text, "<script" in text, "Two" in text
    (True, True, False, False)
    """
    shown = [section for section in sections if section.content]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    links = tag("nav", *(tag("a", section.title, href=f"#{section.name}") for section in shown), aria_label="Contents")
    bodies = (
        tag("section", tag("h2", section.title, id=section.name), "\n", join(section.content, "\n"))
        for section in shown
    )
    body = tag("body", tag("header", tag("h1", title), tag("p", about, class_="note"), links), "\n", join(bodies, "\n"))
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'
