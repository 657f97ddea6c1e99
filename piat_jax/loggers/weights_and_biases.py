"""Weights & Biases logger: online if there is a key, else offline, in the run's folder `wandb`."""

import importlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from piat_jax.loggers.base import Logger, RunInfo, logger, numbers
from piat_jax.loggers.ids import keep_id, read_id

NAME = "wandb"
START_SECONDS = 50.0
"""Time limits for the server's first answer and for the last upload; below `trackers.SECONDS`."""


@logger(NAME, title="Weights & Biases", summary="A run of Weights & Biases; offline without a key.")
class WeightsAndBiases(Logger):
    """Logs to Weights & Biases, respecting WANDB_MODE, WANDB_PROJECT and so on; the id is kept in the run's folder."""

    package, extra = "wandb", "wandb"

    def start(self, info: RunInfo) -> None:
        """Begin a run, or continue the one stored in the folder, without questions on the terminal."""
        self.wandb = importlib.import_module("wandb")
        found = self.wandb.setup().settings
        mode = "offline" if os.environ.get("WANDB_MODE") == "dryrun" else found.mode
        if mode == "online" and not _has_key(found):
            mode = "offline"
            info.note(
                f"wandb has no key and stays offline: wandb sync {info.folder}/wandb/offline-run-* uploads later; "
                "give a key by WANDB_API_KEY or wandb login"
            )
        run_id = (read_id(info.folder, NAME) if info.resumed else "") or secrets.token_hex(4)
        keep_id(info.folder, NAME, run_id)
        settings = self.wandb.Settings(
            console="off",  # leave the terminal to the user
            silent=True,
            init_timeout=START_SECONDS,
            finish_timeout=START_SECONDS,
        )
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "piat_jax"),
            name=os.environ.get("WANDB_NAME", info.folder.absolute().name),
            dir=str(info.folder),
            id=run_id,
            resume="allow" if info.resumed else None,
            config={name: dict(value) if isinstance(value, Mapping) else value for name, value in info.config.items()},
            mode=mode,
            reinit="create_new",  # leaves the user's other runs in this process alone
            settings=settings,
        )
        # Epochs are the axis: a resumed run may write an epoch again, which wandb's step does not allow.
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Log every number."""
        self.run.log({"epoch": step, **numbers(record)})

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """Log the picture with its caption."""
        shown = image[..., 0] if image.shape[-1] == 1 else image
        self.run.log({"epoch": step, name: self.wandb.Image(shown, caption=caption)})

    def text(self, name: str, text: str, step: int) -> None:
        """Put the text into the run's summary."""
        self.run.summary[name] = text

    def close(self, *, finished: bool = True) -> None:
        """End the run; a stopped run counts as failed."""
        self.run.finish(exit_code=0 if finished else 1)


def _has_key(settings: Any) -> bool:
    """Whether there is a key for the server: in the environment, in the settings, or in a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    import netrc

    host = settings.base_url.partition("://")[2].partition("/")[0]
    file = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
