"""The commands in experiments/: each says what it does, and takes no flag that it does not know."""

import doctest
import importlib
from pathlib import Path

import pytest

from experiments.throughput import decoding, small_set
from piat_jax.cli import errors

ROOT = Path(__file__).parent.parent


def modules_with(text):
    """Names of the modules in experiments/ whose source has it."""
    files = (ROOT / "experiments").rglob("*.py")
    found = [file.relative_to(ROOT) for file in files if text in file.read_text()]
    return sorted(str(file.with_suffix("")).replace("/", ".") for file in found)


COMMANDS = modules_with('__name__ == "__main__"')
WITH_DOCTESTS = [name for name in modules_with(">>> ") if "torch" not in name]  # those: test_torch_reference.py


def code_of(main, *arguments):
    try:
        return errors.run(main, list(arguments))
    except SystemExit as ended:  # argparse's way
        return ended.code


def test_they_are_found():
    assert len(COMMANDS) > 15
    assert "experiments.throughput.conv_in_loop" in COMMANDS
    assert "experiments.engine.claims" in WITH_DOCTESTS


@pytest.mark.parametrize("name", WITH_DOCTESTS)
def test_doctests(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_an_unknown_flag(name, capsys):
    """Nothing is measured or trained for them."""
    main = importlib.import_module(name).main
    assert code_of(main, "--help") == 0
    assert len(capsys.readouterr().out) > 100
    assert code_of(main, "--no_such_flag") == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (small_set, ["--train=0"], "train=0 must be at least 1"),
        (small_set, ["--test=-1"], "test=-1 must be at least 1"),
        (decoding, ["--workers=0,x"], "workers='0,x' is not a list of numbers; give such as 0,1,2"),
        (decoding, ["--workers=-1"], "workers=-1 must be at least 0"),
        (decoding, ["--images=0"], "images=0 must be at least 1"),
        (decoding, ["--epochs=0"], "epochs=0 must be at least 1"),
    ],
)
def test_bad_numbers_are_an_error_before_anything_is_written(command, arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert code_of(command.main, f"--out={out}", *arguments) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"
    assert not out.exists()
