import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from piat_jax.training import progress as progress_module
from piat_jax.training.progress import TrainingProgress

SCRIPT = """
from piat_jax.training.progress import TrainingProgress
progress = TrainingProgress(2, first_epoch=1, images_per_epoch=100)
progress.chunk(1, 5, 10)
progress.epoch(1, {"loss": 1.5, "test_pgd20": 0.25}, 123.4)
progress.close()
"""


def test_plain_lines_where_there_is_no_terminal(capsys):
    progress = TrainingProgress(120, first_epoch=1, images_per_epoch=100)
    progress.chunk(1, 1, 2)
    progress.epoch(7, {"loss": 1.5, "test_pgd20": 0.25}, 1234.5)
    progress.close()
    printed = capsys.readouterr().out
    assert re.fullmatch(r"epoch   7/120  loss 1\.500  test_pgd20 25\.00%  1,23[45] img/s  left 0s\n", printed), printed


GOES_ON = {5: (20, "1m40s"), 6: (40, "1m20s"), 9: (100, "20s"), 10: (120, "0s")}
COMPILES = {1: (60, "3m00s"), 2: (70, "20s"), 3: (80, "10s"), 4: (90, "0s")}


@pytest.mark.parametrize("ends", [GOES_ON, COMPILES], ids=["20 s an epoch", "a minute and then 10 s an epoch"])
def test_the_time_left_is_that_of_the_epochs_to_come(capsys, monkeypatch, ends):
    """By a clock of its own: the seconds at which epochs end, and what is left then."""
    clock = [1000.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: clock[0])
    progress = TrainingProgress(max(ends), first_epoch=min(ends), images_per_epoch=100)
    for epoch, (seconds, left) in ends.items():
        clock[0] = 1000.0 + seconds
        progress.epoch(epoch, {}, 5.0)
        assert capsys.readouterr().out.endswith(f"  left {left}\n")


def test_a_bar_with_rate_and_time_left_on_a_terminal():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "epoch 1/2" in text
    assert "img/s" in text
    assert "left" in text
    assert "test_pgd20 25.00%" in text


def test_a_notebook_gets_few_lines(monkeypatch, capsys):
    def lines(epochs):
        progress = TrainingProgress(epochs, first_epoch=1, images_per_epoch=10)
        for epoch in range(1, epochs + 1):
            progress.chunk(epoch, 1, 1)
            progress.epoch(epoch, {"loss": 1.0}, 10.0)
        progress.close()
        return capsys.readouterr().out.splitlines()

    assert len(lines(1001)) == 1001
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert len(lines(80)) == 80
    told = lines(1001)
    assert len(told) <= 101
    assert [line.split()[1] for line in (told[0], told[-1])] == ["11/1001", "1001/1001"]
    # IPython on a terminal is no notebook.
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert len(lines(150)) == 150
