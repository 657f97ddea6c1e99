"""TensorBoard logger: event files in the run's folder `tensorboard`."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from piat_jax.core.nested import leaves
from piat_jax.loggers.base import Logger, RunInfo, logger, numbers


@logger("tensorboard", title="TensorBoard", summary="Event files in the run's folder tensorboard.")
class TensorBoard(Logger):
    """Writes event files; events that a resumed run repeats are purged."""

    package, extra = "tensorboardX", "logging"

    def start(self, info: RunInfo) -> None:
        """Open the file and write the config as a table."""
        writer = importlib.import_module("tensorboardX").SummaryWriter
        purge = info.epochs_done + 1 if info.epochs_done else None
        self.writer = writer(str(info.folder / "tensorboard"), purge_step=purge)
        rows = "\n".join(f"| {name} | {value} |" for name, value in leaves(info.config).items())
        self.text("config", f"| field | value |\n|---|---|\n{rows}", info.epochs_done)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Write a scalar for each number."""
        for tag, value in numbers(record).items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """Write the picture, and its caption as text."""
        self.writer.add_image(name, image, step, dataformats="HWC")
        self.text(f"{name} caption", caption, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Markdown."""
        self.writer.add_text(name, text, step)
        self.writer.flush()

    def close(self, *, finished: bool = True) -> None:
        """Close the file."""
        self.writer.close()


def has_tensorboard() -> bool:
    """Whether TensorBoard events can be written."""
    return importlib.util.find_spec("tensorboardX") is not None
