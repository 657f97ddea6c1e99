"""What all commands have in common: help, version, and how soon they answer."""

import importlib
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import piat_jax
from piat_jax.__main__ import COMMANDS
from piat_jax.cli import errors

ROOT = Path(__file__).parent.parent.parent
MODULES = [name.removeprefix("piat-") for name in COMMANDS]


def main_of(name):
    return importlib.import_module(f"piat_jax.cli.{name}").main


@pytest.mark.parametrize("name", MODULES)
def test_help_and_version(name, capsys):
    assert errors.run(main_of(name), ["--help"]) == 0
    printed = capsys.readouterr().out
    assert f"piat-{name}" in printed
    assert len(printed.splitlines()) < 80
    assert errors.run(main_of(name), ["--version"]) == 0
    assert capsys.readouterr().out == f"piat_jax {piat_jax.__version__}\n"
    assert errors.run(main_of(name), ["--nope"]) == 2
    assert "Unknown command line flag 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize("name", MODULES)
def test_help_needs_no_jax(name):
    code = f"import sys\nsys.argv = ['x', '--help']\nfrom piat_jax.cli import {name}\ntry:\n    {name}.entry()\n"
    code += "except SystemExit:\n    print('JAX' if 'jax' in sys.modules else 'quick')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "quick", done.stderr


def test_benchmark_alone_prints_its_help(capsys):
    assert errors.run(main_of("benchmark"), []) == 0
    assert "--models" in capsys.readouterr().out


def test_the_list_is_that_of_the_installed_commands():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
    assert scripts == {name: f"piat_jax.cli.{name.removeprefix('piat-')}:entry" for name in COMMANDS}
    done = subprocess.run([sys.executable, "-m", "piat_jax"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_python_m_is_each_command_too():
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "piat_jax", *arguments], capture_output=True, text=True, cwd=ROOT)

    assert run("train", "--version").stdout == f"piat_jax {piat_jax.__version__}\n" == run("--version").stdout
    wrong = run("tarin")
    assert (wrong.returncode, "'tarin' is not one of these commands" in wrong.stderr) == (1, True)


def test_a_reader_who_has_had_enough_is_no_error():
    command = f"{sys.executable} -m piat_jax methods | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


INTERRUPTED = """
import atexit
from piat_jax.cli import errors

class Freed:
    def __del__(self):
        print("freed", flush=True)

def main(arguments):
    raise KeyboardInterrupt if arguments == ["interrupt"] else SystemExit(3)

kept = Freed()
atexit.register(print, "registered")
errors.leave(errors.run(main))
"""


def test_after_ctrl_c_nothing_is_freed():
    """XLA may still compute with it, and would crash."""
    done, other = (
        subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, cwd=ROOT)
        for arguments in (["interrupt"], [])
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "registered\n", "interrupted\n")
    assert (other.returncode, other.stdout) == (3, "registered\nfreed\n")


def test_every_command_ends_by_leave():
    files = [file for folder in ("piat_jax", "experiments") for file in (ROOT / folder).rglob("*.py")]
    ends = [
        file.name
        for file in files
        if "errors.run(main)" in file.read_text() and "leave(errors.run(main))" not in file.read_text()
    ]
    assert ends == []


def test_every_command_that_is_named_is_there():
    """In code, messages and documentation."""
    files = [
        *(ROOT.glob("*.md")),
        *(file for folder in ("piat_jax", "experiments", "docs", "configs") for file in (ROOT / folder).rglob("*.*")),
    ]
    named = {
        name
        for file in files
        if file.suffix in (".py", ".md")
        for name in re.findall(r"(?<![\w/+.-])piat-[a-z]+(?![\w+-])", file.read_text())
    }
    assert named == set(COMMANDS)
