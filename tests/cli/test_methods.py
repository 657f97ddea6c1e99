import json

import pytest

from piat_jax.averaging import AVERAGES, average_fields
from piat_jax.cli import errors, methods
from piat_jax.core.checks import InputError
from piat_jax.experiment import Run, config
from piat_jax.experiment.methods import method_groups, parse_method
from piat_jax.objectives import METHODS, WRAPPERS


def call(*arguments):
    return errors.run(methods.main, list(arguments))


def test_the_whole_list(capsys):
    assert call() == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*METHODS, *WRAPPERS, *AVERAGES, "piat"):
        at = lines.index(name)
        sentence, following = lines[at + 1], "\n".join(lines[at + 1 : at + 8])
        assert sentence.startswith("    ")
        assert "arXiv" in following or "paper" in following or "(" in following or name == "standard"
    text = "\n".join(lines)
    assert "config.awp: gamma=0.01, start=0\n" in text
    assert "config.piat: a=1, b=1, c=1, d=10, first_epoch=1" in text


def test_one_method(capsys):
    assert call("trades+awp+piat") == 0
    printed = capsys.readouterr().out
    assert "config.awp: gamma=0.005, start=0.045" in printed
    assert "beta=6" in printed
    assert "mail" not in printed
    assert call("tradse") == 2
    assert capsys.readouterr().err == "error: method='tradse' is unknown; did you mean 'trades'?\n"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("piat", "pgd_at+piat"),
        ("piat+swa+awp+trades", "trades+awp+swa+piat"),
        ("awp+ecas", "pgd_at+awp+ecas"),
        ("rat+swa", "trades+rat+swa"),
        ("mart+rpat+awp", "mart+rpat+awp"),
    ],
)
def test_parts_in_any_order_and_wrappers_from_the_inside_out(text, canonical):
    assert str(parse_method(text)) == canonical
    assert parse_method(canonical) == parse_method(text)


def test_an_exact_stack_wins_over_its_base():
    assert method_groups(parse_method("awp+las"))["objective"]["label_smoothing"] == 0
    assert method_groups(parse_method("las"))["objective"]["label_smoothing"] == 0.3


def test_averages_are_made_of_their_fields():
    assert average_fields("swa")["start"] == pytest.approx(55 / 200)
    with pytest.raises(InputError, match="'' is unknown"):
        parse_method("trades++piat")


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("pgd_at", "advertorch"),
        ("consistency", "advertorch"),
        ("kd+swa", "advertorch"),
        ("trades", "trades"),
        ("mart+consistency", "trades"),
        ("mart+rpat", "trades"),
        ("awp", "awp"),
        ("trades+awp", "awp"),
        ("rebat", "awp"),
        ("rpatpp", "awp"),
        ("nmse+piat", "exact"),
    ],
)
def test_l2_steps_are_those_of_the_method_s_code(method, rule):
    experiment = config.load(f"cifar10_resnet18:{method}", checked=False)
    assert experiment.attack.l2_rule == rule
    assert experiment.with_fields({"attack.norm": "l2"}).build_attack().options["l2_rule"] == rule


def test_runs_from_before_there_were_rules_take_exact_steps(tmp_path):
    plain = config.load("cifar10_resnet18:trades").plain()
    del plain["attack"]["l2_rule"]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert Run(tmp_path).experiment().attack.l2_rule == "exact"
