"""Cost of a training step by batch size, attack steps, image size and width, and of AutoAttack by number of devices.

    python -m experiments.throughput.scaling [--out=experiments/throughput] [--redraw]

One thing is varied at a time around a small residual network (width 16, 32x32x3, batch 64, PGD-10 + NMSE, float32).
Each point is a separate process with two warm-ups and three rounds, and is written to scaling.jsonl at once; what is
there already is not measured again. Devices are emulated: one CPU that calls itself n of them, so their line shows what
splitting a block costs, not what it gains.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from piat_jax.analysis.curves import COLORS, STYLE
from piat_jax.benchmark import ours
from piat_jax.benchmark.interleaved import Case, Work, measure
from piat_jax.benchmark.measure import forwards, read_rows
from piat_jax.benchmark.ours import NETWORKS, Network
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded

ROUNDS, SECONDS = 3, 2.0
BASE = {"batch": 64, "steps": 10, "size": 32, "width": 16}
VARIED = {
    "batch": (8, 16, 32, 64, 128, 256),
    "steps": (1, 2, 5, 10, 20),
    "size": (16, 24, 32, 48, 64),
    "width": (4, 8, 16, 32, 64),
    "devices": (1, 2, 4, 8),
}
AXES = {
    "batch": "batch (images)",
    "steps": "attack steps K",
    "size": "image side (pixels)",
    "width": "channels of the first stage",
    "devices": "devices (AutoAttack)",
}
# The number of operations is proportional to these; forwards as piat-benchmark counts them.
ARITHMETIC = {
    "batch": lambda batch: batch,
    "steps": lambda steps: forwards("train", steps),
    "size": lambda side: side**2,
    "width": lambda channels: channels**2,
    "devices": lambda devices: 1,
}


class Point(NamedTuple):
    """One measurement: what is varied, and all settings."""

    varied: str
    settings: dict[str, int]

    @property
    def value(self) -> int:
        """Of what is varied."""
        return self.settings[self.varied]

    @property
    def case(self) -> Case:
        """With the rest in the model's name, which `prepare` reads: a case crosses into another process."""
        name = f"{self.settings['width']}-{self.settings['size']}-{self.settings.get('devices', 1)}"
        what = "apgd-ce" if self.varied == "devices" else "train"
        return Case(what=what, model=name, batch=self.settings["batch"], steps=self.settings["steps"])


def points() -> Iterator[Point]:
    """All of them; the middle one of each line is the same."""
    for name, values in VARIED.items():
        for value in values:
            yield Point(name, {**BASE, name: value})


def prepare(case: Case) -> Work:
    """The library's side of the benchmark, on the network that the case's name describes."""
    width, size, devices = map(int, case.model.split("-"))
    jax.config.update("jax_num_cpu_devices", devices)
    NETWORKS[case.model] = Network("small_resnet", (size, size, 3), {"width": width, "stem_stride": 1})
    return ours.prepare(case)


def main(argv: Sequence[str]) -> None:
    """The command."""
    values = arguments.new_flags()
    flags.DEFINE_string("out", "experiments/results/throughput", "Folder to write to.", flag_values=values)
    flags.DEFINE_boolean("redraw", False, "Draw what is measured already, measure nothing.", flag_values=values)
    arguments.parse(values, argv, __doc__)
    out = expanded(values.out)
    if not out.is_dir():
        raise InputError(f"out={values.out!r} is no folder; make it first")
    file = out / "scaling.jsonl"
    rows = read_rows(file) if file.exists() else []
    for point in () if values.redraw else points():
        if any(row["settings"] == point.settings and row["varied"] == point.varied for row in rows):
            continue
        row = measure_point(point)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        rows.append(row)
        print(f"{point.varied}={point.value}: {row['seconds']:.4g} s, {row['peak_memory_bytes'] / 2**20:.0f} MiB")
    if not rows:
        raise InputError(f"{str(file)!r} has nothing to draw; leave --redraw out to measure")
    draw(rows, out)


def measure_point(point: Point) -> dict[str, Any]:
    """Its line of scaling.jsonl."""
    measured = measure({"ours": prepare}, point.case, rounds=ROUNDS, seconds=SECONDS)
    if "ours" not in measured:
        raise InputError(f"{point.varied}={point.value} failed; its message is above")
    side = measured["ours"]
    return {
        **{name: side.about[name] for name in ("device", "started", "commit", "versions")},
        "varied": point.varied,
        "settings": point.settings,
        "seconds": point.settings["batch"] / statistics.median(side.rates),
        "compile_seconds": side.compile_seconds,
        "peak_memory_bytes": side.peak_memory or 0,
    }


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """scaling.png and .svg: seconds above, peak memory below, a column for each thing that is varied."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(VARIED), figsize=(10, 4.2), sharey="row", layout="constrained")
        for column, name in zip(axes.T, VARIED):
            found = sorted((row for row in rows if row["varied"] == name), key=lambda row: row["settings"][name])
            x = [row["settings"][name] for row in found]
            seconds = [row["seconds"] for row in found]
            ideal = [seconds[-1] * ARITHMETIC[name](value) / ARITHMETIC[name](x[-1]) for value in x]
            column[0].loglog(x, ideal, "--", color="0.5", linewidth=0.8)
            column[0].loglog(x, seconds, "o-", color=COLORS[0], markersize=3, linewidth=1)
            memory = [row["peak_memory_bytes"] / 2**20 for row in found]
            column[1].semilogx(x, memory, "o-", color=COLORS[0], markersize=3, linewidth=1)
            for axis in column:
                axis.set_xticks(VARIED[name], [str(value) for value in VARIED[name]])
                axis.minorticks_off()
                axis.grid(True, color="0.9", linewidth=0.5)
            column[1].set_xlabel(AXES[name])
        axes[1, 0].set_ylim(0, 1.05 * max(row["peak_memory_bytes"] for row in rows) / 2**20)
        axes[0, 0].set_ylabel("seconds a step\n(dashed: arithmetic only)")
        axes[1, 0].set_ylabel("peak memory (MiB)")
        for suffix in (".png", ".svg"):
            figure.savefig(out / f"scaling{suffix}", dpi=200)
        plt.close(figure)


if __name__ == "__main__":
    errors.leave(errors.run(main))
