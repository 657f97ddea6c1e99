"""A long run, observed from outside: whether memory, open files, threads or compilations grow with its epochs.

    python -m experiments.soak --workdir=runs/soak --out=experiments/soak --epochs=500

Trains PIAT on a few embedded images, as piat-train does, evaluated and saved every epoch, in a separate process. At
each epoch that appears in its metrics the process is looked at through /proc (Linux only), and JAX's log of
compilations is counted. Writes soak.jsonl and soak.svg, and ends with an error if something grew in the second half.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import markdown
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file
from piat_jax.loggers import read_metrics

OPTIONS = {
    "dataset.train_examples": 64,
    "dataset.test_examples": 32,
    "batch_size": 32,
    "attack.steps": 2,
    "model.options.width": 4,
    "evaluation.every_epochs": 1,
    "evaluation.attacks": "clean,pgd2",
    "evaluation.select": "pgd2",
    "evaluation.batch_size": 32,
    "checkpoint.every_epochs": 1,
}
# Quantities that must not grow, their unit, and by how much the end may exceed the middle.
WATCHED = {
    "memory": ("MB", 20.0),
    "files": ("open files", 3.0),
    "threads": ("threads", 3.0),
    "compiled": ("programs", 0),
}


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = arguments.split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("workdir", "runs/soak", "Folder of the run.", flag_values=values)
    flags.DEFINE_string("out", "runs/soak/report", "Folder of what is found.", flag_values=values)
    flags.DEFINE_string("config", "embedded:nmse+swa+piat", "Config and method.", flag_values=values)
    flags.DEFINE_integer("epochs", 500, "Epochs to train.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    options = {**OPTIONS, **overrides, "epochs": values.epochs}
    samples = watch(values.config, expanded(values.workdir), options)
    out = expanded(values.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    write_file(out / "soak.jsonl", lambda file: file.write(lines.encode()))
    draw(samples, out / "soak.svg")
    print(to_markdown(samples))
    if grown := growth(samples):
        raise InputError("\n".join(grown))


def watch(text: str, folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Train, and look at the process once an epoch."""
    command = [sys.executable, "-m", "piat_jax.cli.train", f"--config={text}", f"--workdir={folder}", "--overwrite"]
    command += [f"--config.{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "JAX_LOG_COMPILES": "1"}
    samples, compiled, last = [], [], ""
    began = time.perf_counter()
    # A run that was in the folder is not this one's.
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:

        def count() -> None:
            nonlocal last
            for line in process.stderr or ():
                last = line.strip() or last
                if re.search(r"Finished XLA compilation", line):
                    compiled.append(line)

        reader = threading.Thread(target=count)
        reader.start()
        while process.poll() is None:
            time.sleep(0.2)
            records = read_metrics(folder)
            if records and (not samples or records[-1]["epoch"] > samples[-1]["epoch"]):
                looked = _look(process.pid)
                if looked:
                    seconds = round(time.perf_counter() - began, 1)
                    samples.append(
                        {"epoch": records[-1]["epoch"], "seconds": seconds, **looked, "compiled": len(compiled)}
                    )
        reader.join()
    if process.returncode not in (0, errors.SAVED):  # stopped by a signal, it is judged by what it has done
        raise InputError(f"the run failed with exit code {process.returncode}: {last}")
    return samples


def _look(process: int) -> dict[str, float] | None:
    """Resident memory in MB, open files and threads of a process; None where it has just ended."""
    place = Path(f"/proc/{process}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        return {
            "memory": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
            "files": len(list((place / "fd").iterdir())),
            "threads": len(list((place / "task").iterdir())),
        }
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None


def growth(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Quantities that are larger in the last tenth of the samples than in the tenth at their middle.

    By the medians: a save that is under way holds files and threads for a moment.
    """
    found = []
    for name, (unit, allowed) in WATCHED.items():
        middle, end = _middle_and_end(samples, name)
        if end - middle > allowed:
            found.append(f"{name} grew in the second half of the run, from {middle:g} to {end:g} {unit}")
    return found


def _middle_and_end(samples: Sequence[dict[str, Any]], name: str) -> tuple[float, float]:
    values = [sample[name] for sample in samples]
    tenth = max(1, len(values) // 10)
    middle = values[len(values) // 2 :][:tenth]
    return statistics.median(middle), statistics.median(values[-tenth:])


def to_markdown(samples: Sequence[dict[str, Any]]) -> str:
    """Each quantity at the first sample, and its medians in the middle and at the end."""
    rows = []
    for name, (unit, _) in WATCHED.items():
        numbers = (samples[0][name], *_middle_and_end(samples, name))
        rows.append([f"{name}, {unit}", *(f"{number:g}" for number in numbers)])
    return markdown.table(("", "first", "middle", "end"), rows)


def draw(samples: Sequence[dict[str, Any]], path: Path) -> None:
    """Each quantity over the epochs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(WATCHED), figsize=(3 * len(WATCHED), 2.6), layout="constrained")
    for axis, (name, (unit, _)) in zip(axes, WATCHED.items()):
        axis.plot([sample["epoch"] for sample in samples], [sample[name] for sample in samples])
        axis.set(xlabel="epoch", title=name if unit == name else f"{name} ({unit})", ylim=(0, None))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    errors.leave(errors.run(main))
