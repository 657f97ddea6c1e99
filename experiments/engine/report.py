"""One report per paper, as Markdown and HTML: our measurements next to the published numbers.

It is built from the JSON files and pictures that experiments.run writes into a folder.
"""

import base64
import json
import re
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

from experiments import markdown
from experiments.engine.claims import Interval, border, holm, p_value
from piat_jax.analysis.tables import attack_name
from piat_jax.core.checks import InputError

NAMES = {"oscillation": "Oscillation", "gap": "Best - final in training", "seconds": "s per epoch"}
FOR_CHECKPOINTS = {"mean": "Mean", "nrr": "NRR", "beyond": "Beyond PGD and CW"}
VERDICT = "Verdict"  # the head that a table of words is known by
BESIDE = re.compile(r"(.*) / ([\d.-]+)")  # what is published, behind ours
SPECIAL = re.compile(r"[\\`*<|~]|\](?=\()|(?<![^\W_])_|_(?![^\W_])")  # what Markdown would take for its own
NEAR = 0.005  # two decimals
CELLS = (
    "Cells: our mean over seeds ± sample standard deviation, in percent; after the slash the paper's number for "
    "its own data and network, if it has one. In brackets: the number of seeds, if not all. Bold: our best in a "
    "column. Beyond PGD and CW: the images that AutoAttack breaks and PGD-20 and CW-20 do not, in percent of all."
)
VERDICTS = (
    "Difference: the first method minus the second, paired by seed, in points, with its 95 % t interval. Holds, does "
    "not hold: the interval lies on one side of 0 (of -1 for accuracy that is said to be kept). Not decided: it "
    "includes 0. p: from the paired t test. Holm: p corrected for the number of tests in this table; if it is below "
    "0.05, the verdict also stands among all of them."
)


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
        text = compose(paper, items)
    except KeyError as error:
        raise InputError(f"{folder} has results of another version, without {error}; run their items again") from error
    paths = [folder / "report.md", folder / "report.html"]
    paths[0].write_text(text, encoding="utf-8")
    paths[1].write_text(to_html(text, folder), encoding="utf-8")
    return paths


def compose(paper: str, items: Sequence[Mapping[str, Any]]) -> str:
    """The report in GitHub's Markdown: claims first, then every item, then where it was measured."""
    blocks = [f"# {paper.upper()}: ours and theirs", CELLS]
    if claims := [(item, claim) for item in items for claim in item["claims"]]:
        blocks += ["## Which claims hold on this data", _claims(claims), VERDICTS]
    for item in items:
        blocks += _item(item)
    blocks += ["## Where it was measured", *map(plain, _environments(items))]
    return "\n\n".join(blocks) + "\n"


def _claims(claims: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    differences = [
        Interval(claim["mean"], *(np.inf if claim[side] is None else claim[side] for side in ("low", "high")))
        for _, claim in claims
    ]
    tests = [p_value(found, claim["seeds"], border(claim["kind"])) for found, (_, claim) in zip(differences, claims)]
    rows = []
    for (item, claim), difference, p, corrected in zip(claims, differences, tests, holm(tests)):
        pair = f"{claim['method']} - {claim['other']}, {measure_name(claim['measure'])}"
        verdict, where = f"**{claim['verdict']}**", (claim["setting"], claim["seeds"], item["item"])
        shown = [probability(value) for value in (p, corrected)]
        rows.append([plain(claim["text"]), plain(pair), difference.text(), verdict, *shown, *where])
    heads = ("Claim", "Measured", "Difference", VERDICT, "p", "Holm", "Data", "Seeds", "Item")
    return markdown.table(heads, rows, words=None)


def probability(value: float | None) -> str:
    """A p value as printed, on its side of 0.05; a dash if there is only one seed.

    >>> probability(0.0312), probability(0.04964), probability(2e-5), probability(None)
    ('0.031', '0.0496', '<0.001', '\N{EN DASH}')
    """
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.3f}"
    return "<0.001" if value < 0.001 else f"{value:.4f}" if text == "0.050" else text


def _item(item: Mapping[str, Any]) -> list[str]:
    blocks = [f"## {plain(item['title'])}"]
    for setting in item["settings"]:
        rows = [row for row in item["rows"] if row["setting"] == setting["name"]]
        blocks.append(f"### {plain(setting['title'])}")
        examples = f"{setting['test_examples']} test images"
        if setting["aa_examples"] and any(key.endswith("aa") for key in item["keys"]):
            examples += f", AutoAttack on the first {setting['aa_examples']}"
        if setting.get("aa_blocks") and any(key.endswith("aa") for key in item["keys"]):
            size = setting["aa_blocks"]
            examples += f", AutoAttack on them by margin, in blocks of {size} until it breaks hardly any"
        fields = "".join(f" --config.{path}={value}" for path, value in setting["overrides"].items())
        seeds = ", ".join(map(str, item["seeds"]))
        about = f"{setting['config']}{fields}; seeds {seeds}; {examples}; best chosen on {setting['chosen_on']}."
        blocks.append(plain(f"{about} {_beside(setting)}".strip()))
        if item["as_table"]:
            blocks.append(table(rows, item["keys"], len(item["seeds"])))
            blocks += dict.fromkeys(plain(f"{row['name']}: {row['note']}") for row in rows if row["note"])
        blocks += [f"![{plain(caption)}]({name})" for name, caption in item["pictures"].get(setting["name"], ())]
    return blocks + [plain(note) for note in (*item["notes"], *item["study"].get("findings", ()))]


def _beside(setting: Mapping[str, Any]) -> str:
    said = f"Compared with the paper's {', '.join(setting['beside'])}. " if setting["beside"] else ""
    return said + setting["differs"]


def table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], seeds: int) -> str:
    """Rows of methods, columns of measures; those that neither side has are left out."""
    keys = [key for key in keys if any(key in row["ours"] or key in row["paper"] for row in rows)]
    means = {key: [float(np.mean(row["ours"][key])) if key in row["ours"] else None for row in rows] for key in keys}
    best: dict[str, float] = {}
    for key in keys:
        known = [value for value in means[key] if value is not None]
        if len(known) > 1:
            # Of distances from best to final, and of what oscillates or takes time, less is better.
            lower = key.partition(":")[0] in ("diff", "beyond", "oscillation", "gap", "seconds")
            best[key] = min(map(abs, known)) if lower else max(known)
    lines = []
    for index, row in enumerate(rows):
        cells = [plain(row["name"])]
        for key in keys:
            theirs = f" / {row['paper'][key]:.2f}" if key in row["paper"] else ""
            mean = means[key][index]
            if mean is None:
                cells.append(f"\N{EN DASH}{theirs}")
                continue
            shown = abs(mean) if key.startswith("diff") else mean
            values = row["ours"][key]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            spread += f" ({len(values)})" if len(values) < seeds else ""
            bold = "**" if key in best and abs(shown - best[key]) < NEAR else ""
            cells.append(f"{bold}{shown:.2f}{spread}{bold}{theirs}")
        lines.append(cells)
    return markdown.table(("Method", *map(measure_name, keys)), lines, words=None)


def plain(text: str) -> str:
    r"""Text as Markdown that shows it as it is.

    >>> plain("ReBAT* of wrn34_10, _a_, a|b, [0.1, 0.2]")
    'ReBAT\\* of wrn34_10, \\_a\\_, a\\|b, [0.1, 0.2]'
    """
    return SPECIAL.sub(r"\\\g<0>", text)


def measure_name(key: str) -> str:
    """What a column is called.

    >>> measure_name("best:pgd20"), measure_name("diff:aa"), measure_name("nrr:best"), measure_name("beyond:best")
    ('PGD-20 best', 'AA diff', 'NRR best', 'Beyond PGD and CW best')
    """
    kind, _, rest = key.partition(":")
    if kind in ("best", "final", "diff"):
        return f"{attack_name(rest)} {kind}"
    if kind in FOR_CHECKPOINTS:
        return f"{FOR_CHECKPOINTS[kind]} {rest}"
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


def to_html(markdown: str, folder: Path) -> str:
    """One file of a report in Markdown, pictures inside; published numbers stand small under ours."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    for name, rule in {"image": _figure, "table_open": _open_table, "table_close": _close_table}.items():
        parser.add_render_rule(name, rule)
    tokens = parser.parse(markdown)
    for before, token, after in zip(tokens, tokens[1:], tokens[2:]):
        children = token.children or []
        if [child.type for child in children] == ["image"]:
            before.hidden = after.hidden = True  # a paragraph cannot hold a figure
        elif before.type == "th_open":
            before.attrSet("scope", "col")
        elif before.type == "td_open" and children and (match := BESIDE.fullmatch(children[-1].content)):
            ours, small = Token("text", "", 0, content=match[1]), Token("html_inline", "", 0)
            small.content = f"<small>{match[2]}</small>"
            token.children = [*children[:-1], ours, small]
    title = next(token.content for token in tokens if token.type == "inline")
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"<head>{meta}<title>{escapeHtml(title)}</title><style>{STYLE}</style></head>"
    body = parser.renderer.render(tokens, parser.options, {"folder": folder})
    return f'<!doctype html>\n<html lang="en">\n{head}\n<body>\n{body}</body>\n</html>\n'


def _figure(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
) -> str:
    picture = tokens[index]
    data = base64.b64encode((env["folder"] / str(picture.attrs["src"])).read_bytes()).decode()
    caption = escapeHtml(renderer.renderInlineAsText(picture.children, options, env))
    return (
        f'<figure><img alt="{caption}" width="700" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _open_table(renderer: RendererHTML, tokens: Sequence[Token], index: int, *_: object) -> str:
    heads = takewhile(lambda token: token.type != "thead_close", tokens[index:])
    words = ' class="words"' if any(token.content == VERDICT for token in heads) else ""
    return f'<div class="wide"><table{words}>\n'


def _close_table(*_: object) -> str:
    return "</table></div>\n"
