"""One report for each paper, as Markdown and as one HTML file: what we measured beside what is published.

It is made of the JSON files that experiments.run leaves in a folder, and of the pictures beside them.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.claims import Interval
from piat_jax.analysis.tables import attack_name
from piat_jax.core.checks import InputError

NAMES = {"oscillation": "Oscillation", "gap": "Best - final in training", "seconds": "s per epoch"}
NEAR = 0.005  # two decimals
CELLS = (
    "Cells: ours, mean over seeds ± sample standard deviation, in percent; after the slash what the paper has for its "
    "own data and network, where it has a number. In brackets: of how many seeds, where not of all. Bold: the best of "
    "ours in a column."
)
VERDICTS = (
    "Difference: the first method minus the second, paired by seed, in points, with its 95 % t interval. Holds, does "
    "not hold: the interval lies on one side of 0 (of -1 for what is said to be kept); not decided: it does not. No "
    "correction is made for the number of claims."
)


class Heading(NamedTuple):
    """A line above what follows."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Grid(NamedTuple):
    """A table; a cell is its text, what stands small beside it, and whether it is the best of its column."""

    heads: Sequence[str]
    rows: Sequence[Sequence[tuple[str, str, bool]]]


class Picture(NamedTuple):
    """A file beside the report."""

    name: str
    caption: str


Piece = Heading | Text | Grid | Picture


def write(folder: Path, paper: str, order: Sequence[str] = ()) -> list[Path]:
    """Write report.md and report.html of the items whose JSON is in `folder`, those of `order` first.

    Raises:
      InputError: there is none.
    """
    items = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    place = {key: number for number, key in enumerate(order)}
    items = sorted(
        (item for item in items if item.get("paper") == paper), key=lambda item: place.get(item["item"], len(place))
    )
    if not items:
        raise InputError(f"{folder} has no results of {paper!r}; experiments.run {paper} ITEM --out=... writes some")
    try:
        pieces = compose(paper, items)
    except KeyError as error:
        raise InputError(f"{folder} has results of another version, without {error}; run their items again") from error
    paths = [folder / "report.md", folder / "report.html"]
    paths[0].write_text(to_markdown(pieces), encoding="utf-8")
    paths[1].write_text(to_html(f"{paper.upper()}: ours and theirs", pieces, folder), encoding="utf-8")
    return paths


def compose(paper: str, items: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """The report's content: claims first, then every item, then where it was measured."""
    pieces: list[Piece] = [Heading(1, f"{paper.upper()}: ours and theirs"), Text(CELLS)]
    if claims := [(item, claim) for item in items for claim in item["claims"]]:
        pieces += [Heading(2, "Which claims hold on this data"), _claims(claims), Text(VERDICTS)]
    for item in items:
        pieces += _item(item)
    pieces += [Heading(2, "Where it was measured")]
    pieces += [Text(line) for line in _environments(items)]
    return pieces


def _claims(claims: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Grid:
    rows = []
    for item, claim in claims:
        low, high = (np.inf if claim[side] is None else claim[side] for side in ("low", "high"))
        difference = Interval(claim["mean"], low, high).text()
        pair = f"{claim['method']} - {claim['other']}, {measure_name(claim['measure'])}"
        where = (claim["setting"], str(claim["seeds"]), item["item"])
        cells = (claim["text"], pair, difference, claim["verdict"], *where)
        rows.append([(cell, "", index == 3) for index, cell in enumerate(cells)])
    return Grid(("Claim", "Measured", "Difference", "Verdict", "Data", "Seeds", "Item"), rows)


def _item(item: Mapping[str, Any]) -> list[Piece]:
    pieces: list[Piece] = [Heading(2, item["title"])]
    for setting in item["settings"]:
        rows = [row for row in item["rows"] if row["setting"] == setting["name"]]
        pieces.append(Heading(3, setting["title"]))
        examples = f"{setting['test_examples']} test images"
        if setting["aa_examples"] and any(key.endswith("aa") for key in item["keys"]):
            examples += f", AutoAttack on the first {setting['aa_examples']}"
        fields = "".join(f" --config.{path}={value}" for path, value in setting["overrides"].items())
        seeds = ", ".join(map(str, item["seeds"]))
        about = f"{setting['config']}{fields}; seeds {seeds}; {examples}; best chosen on {setting['chosen_on']}."
        pieces.append(Text(f"{about} {_beside(setting)}".strip()))
        if item["as_table"]:
            pieces.append(table(rows, item["keys"], len(item["seeds"])))
            notes = dict.fromkeys(f"{row['name']}: {row['note']}" for row in rows if row["note"])
            pieces += [Text(note) for note in notes]
        pieces += [Picture(name, caption) for name, caption in item["pictures"].get(setting["name"], ())]
    pieces += [Text(note) for note in (*item["notes"], *item["study"].get("findings", ()))]
    return pieces


def _beside(setting: Mapping[str, Any]) -> str:
    said = f"Beside: the paper's {', '.join(setting['beside'])}. " if setting["beside"] else ""
    return said + setting["differs"]


def table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], seeds: int) -> Grid:
    """Rows of methods, columns of measures; those that neither side has are left out."""
    keys = [key for key in keys if any(key in row["ours"] or key in row["paper"] for row in rows)]
    means = {key: [float(np.mean(row["ours"][key])) if key in row["ours"] else None for row in rows] for key in keys}
    best: dict[str, float] = {}
    for key in keys:
        known = [value for value in means[key] if value is not None]
        if len(known) > 1:
            # Of distances from best to final, and of what oscillates or takes time, less is better.
            lower = key.partition(":")[0] in ("diff", "oscillation", "gap", "seconds")
            best[key] = min(map(abs, known)) if lower else max(known)
    lines = []
    for index, row in enumerate(rows):
        cells = [(row["name"], "", False)]
        for key in keys:
            theirs = f"{row['paper'][key]:.2f}" if key in row["paper"] else ""
            mean = means[key][index]
            if mean is None:
                cells.append(("\N{EN DASH}", theirs, False))
                continue
            shown = abs(mean) if key.startswith("diff") else mean
            values = row["ours"][key]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            spread += f" ({len(values)})" if len(values) < seeds else ""
            cells.append((f"{shown:.2f}{spread}", theirs, key in best and abs(shown - best[key]) < NEAR))
        lines.append(cells)
    return Grid(("Method", *map(measure_name, keys)), lines)


def measure_name(key: str) -> str:
    """What a column is called.

    >>> measure_name("best:pgd20"), measure_name("diff:aa"), measure_name("nrr:best"), measure_name("oscillation")
    ('PGD-20 best', 'AA diff', 'NRR best', 'Oscillation')
    """
    kind, _, rest = key.partition(":")
    if kind in ("best", "final", "diff"):
        return f"{attack_name(rest)} {kind}"
    if kind in ("mean", "nrr"):
        return f"{'NRR' if kind == 'nrr' else 'Mean'} {rest}"
    return NAMES.get(kind, key)


def _environments(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each combination of device, versions and commit."""
    found: dict[str, list[str]] = {}
    for item in items:
        for about in item["ran_on"]:
            versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
            devices = ", ".join(sorted(set(about["devices"] or ())))
            line = f"{devices} ({about['machine']}); {versions}; commit {about['commit']}"
            found.setdefault(line, []).append(item["item"])
    return [f"{', '.join(dict.fromkeys(names))}: {line}." for line, names in found.items()]


def to_markdown(pieces: Sequence[Piece]) -> str:
    """GitHub's Markdown."""
    lines: list[str] = []
    for piece in pieces:
        match piece:
            case Heading(level, text):
                lines += [f"{'#' * level} {text}", ""]
            case Text(text):
                lines += [text, ""]
            case Picture(name, caption):
                lines += [f"![{caption}]({name})", ""]
            case Grid(heads, rows):
                lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
                for row in rows:
                    cells = [
                        (f"**{text}**" if bold else text) + (f" / {beside}" if beside else "")
                        for text, beside, bold in row
                    ]
                    lines.append(f"| {' | '.join(cells)} |")
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem } h3 { font-size: 1.05rem }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left } .words td { text-align: left; white-space: normal }
small { display: block; color: #595959 } figure { margin: 1rem 0 } figure img { max-width: 100%; height: auto }
figcaption { font-size: 13px; color: #444 }
"""


def to_html(title: str, pieces: Sequence[Piece], folder: Path) -> str:
    """One file, pictures inside; published numbers stand small under ours."""
    body = []
    for piece in pieces:
        match piece:
            case Heading(level, text):
                body.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Text(text):
                body.append(f"<p>{html.escape(text)}</p>")
            case Picture(name, caption):
                data = base64.b64encode((folder / name).read_bytes()).decode()
                caption = html.escape(caption)
                body.append(
                    f'<figure><img alt="{caption}" width="700" src="data:image/png;base64,{data}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            case Grid(heads, rows):
                words = ' class="words"' if "Verdict" in heads else ""
                head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
                lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
                inside = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
                body.append(f'<div class="wide"><table{words}>{inside}</table></div>')
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    lines = [
        '<!doctype html>\n<html lang="en">',
        f"<head>{head}<title>{html.escape(title)}</title><style>{STYLE}</style></head>",
        "<body>",
        *body,
        "</body>\n</html>\n",
    ]
    return "\n".join(lines)


def _cell(cell: tuple[str, str, bool]) -> str:
    text, beside, bold = cell
    text = html.escape(text)
    return f"<td>{f'<b>{text}</b>' if bold else text}{f'<small>{html.escape(beside)}</small>' if beside else ''}</td>"
