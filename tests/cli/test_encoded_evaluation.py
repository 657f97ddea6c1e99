import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from piat_jax.cli import errors, evaluate, train
from piat_jax.evaluation import Robustness
from piat_jax.experiment import Run
from tests.cli.test_distributed import free_port
from tests.cli.two_encoded import TRAIN
from tests.cli.two_evaluating import EVALUATE
from tests.data.encoded_sets import write_set

SCRIPT = Path(__file__).with_name("two_evaluating.py")


def test_two_processes_that_are_killed_go_on_and_find_what_one_finds(tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    name = write_set(tmp_path / "set", "tar", train=16, test=66)
    once = ["--config.epochs=1", "--config.optimizer.lr_epochs=0,1", f"--config.dataset.name={name}"]
    assert errors.run(train.main, [*TRAIN, *once, f"--workdir={alone}"]) == 0
    shutil.copytree(alone, run)
    assert errors.run(evaluate.main, [*EVALUATE, f"--workdir={alone}"]) == 0

    def together(how):
        options = {"env": {**os.environ, "PYTHONPATH": ".", "TMPDIR": str(tmp_path)}, "stderr": subprocess.PIPE}
        command = [sys.executable, str(SCRIPT), str(run), str(free_port())]
        processes = [subprocess.Popen([*command, number, how], text=True, **options) for number in "01"]
        try:
            said = [process.communicate(timeout=240)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [process.returncode for process in processes], said

    (first, second), said = together("killed")
    assert second == -signal.SIGKILL, said
    assert first != 0, said
    kept = list((Run(run).robustness("final", "square4") / "blocks").glob("*.npz"))
    assert 1 <= len(kept) <= 2, said
    codes, said = together("resumed")
    assert codes == [0, 0], said
    found = [Robustness.load(Run(folder).robustness("final", "square4")) for folder in (alone, run)]
    total = -(-int(found[0].clean.sum()) // 16)
    assert total >= 2
    assert f"attacked {total - len(kept)}\n" in said[0], said
    assert Run(alone).evaluation() == Run(run).evaluation()
    for name in ("clean", "fooled", "queries"):
        assert (getattr(found[0], name) == getattr(found[1], name)).all(), name
    assert not list(tmp_path.glob("tmp*"))  # of the temporary files nothing is left
