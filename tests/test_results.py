"""The pages of results say what the files beside them say."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from experiments.engine.claims import Interval, border, holm, p_value

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
COMMAND = re.compile(r"^    python -m (experiments\.studies\.(?:differences|on_average)) (.+)$", re.MULTILINE)
FOUND = [
    (page, module, arguments)
    for page in sorted(RESULTS.rglob("*.md"))
    for module, arguments in COMMAND.findall(page.read_text())
]


def tables_of(text):
    """The lines of tables, without the empty ones between."""
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(("page", "module", "arguments"), FOUND, ids=lambda part: getattr(part, "name", None))
def test_a_page_has_the_tables_of_the_commands_it_names(page, module, arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    importlib.import_module(module).main(shlex.split(arguments))
    shown = set(tables_of(page.read_text()))
    tables = tables_of(capsys.readouterr().out)
    assert len(tables) > 3
    assert [line for line in tables if line not in shown] == []


def test_the_commands_are_found():
    assert {page.name for page, *_ in FOUND} >= {"averaging.md", "README.md"}


def test_the_numbers_of_claims():
    """Those that are not decided, and those that stand after Holm's correction."""
    items = [json.loads(path.read_text()) for path in sorted((RESULTS / "piat" / "small").glob("*.json"))]
    claims = [claim for item in items for claim in item.get("claims", ())]
    tests = [
        p_value(Interval(*(claim[name] for name in ("mean", "low", "high"))), claim["seeds"], border(claim["kind"]))
        if claim["low"] is not None
        else None
        for claim in claims
    ]
    open_claims = sum(claim["verdict"] == "not decided" for claim in claims)
    stand = sum(value is not None and value < 0.05 for value in holm(tests))
    page, short = (path.read_text() for path in (RESULTS / "piat" / "README.md", ROOT / "docs" / "results.md"))
    assert (
        f"all {len(claims)} claims with Holm's correction; {stand} stand after it, and {open_claims} are not decided"
        in page
    )
    assert f"{open_claims} of {len(claims)} are not decided" in short
