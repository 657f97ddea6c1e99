"""What is read from a folder someone else wrote cannot run code, and what is written tells nothing of who wrote it."""

import ast
import contextlib
import gc
import io
import pickle
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import errors, evaluate
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState

ROOT = Path(__file__).parent.parent
CALLS = {
    # What may be called only with this argument.
    "np.load": "allow_pickle=False",
    "torch.load": "weights_only=not unsafe_pickle",
}
# Unpicklers of our own (CIFAR's, which names what it lets through) and what pickle raises.
ALLOWED_PICKLE = {"piat_jax/data/cifar.py", "piat_jax/interop/tensors.py"}
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open"}


def violations(source, name=""):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if "pickle" in modules and name not in ALLOWED_PICKLE:
                yield f"{name} imports pickle"
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), [ast.unparse(keyword) for keyword in node.keywords]
        if called in FORBIDDEN or "shell=True" in given:
            yield f"{name} calls {ast.unparse(node)}"
        if called in CALLS and CALLS[called] not in given:
            yield f"{name} calls {ast.unparse(node)} without {CALLS[called]}"


def test_nothing_runs_code_that_it_reads():
    files = [path for folder in ("piat_jax", "configs", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    found = [line for path in files for line in violations(path.read_text(), str(path.relative_to(ROOT)))]
    # The comparison of both libraries loads nothing but what it wrote.
    assert [line for line in found if not line.startswith("experiments/throughput/torch")] == []


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path)",
        "torch.load(p, weights_only=False)",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "import pickle",
    ],
)
def test_a_violation_is_seen(source):
    assert list(violations(source))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# orbax leaves behind what it was about to read next, unawaited; it is collected before the next test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_pickle_in_place_of_any_file_of_a_checkpoint_is_not_run(tmp_path):
    params = {"w": jnp.ones(3)}
    state = TrainState(
        step=jnp.int32(0), epoch=jnp.int32(0), params=params, model_state={}, opt_state=(), objective_state=()
    )
    Checkpoints(tmp_path / "good").save("last", state, {"epoch": 0})
    ran = tmp_path / "ran"
    stream = io.BytesIO()
    pickle.dump(Evil(ran), stream)
    pickle.loads(stream.getvalue())
    assert ran.exists()  # it would
    ran.unlink()
    files = [path for path in (tmp_path / "good").rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", copy)
        (copy / path.relative_to(tmp_path / "good")).write_bytes(stream.getvalue())
        with contextlib.suppress(InputError):
            Checkpoints(copy).restore(state)
        assert not ran.exists()
    gc.collect()


def test_names_in_a_runs_files_lead_nowhere_else(tmp_path, capsys):
    """An attack's name becomes a folder's; one that leaves the run is no attack."""
    (tmp_path / "mine.json").write_text("mine")
    for name in ("../../mine", "aa/../../..", "apgd-ce5/..", "/etc"):
        assert (
            errors.run(
                evaluate.main, [f"--workdir={tmp_path}", "--config=configs/embedded.py:pgd_at", f"--attacks={name}"]
            )
            == 2
        )
        assert "is unknown" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "mine"
