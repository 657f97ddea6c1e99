"""The origin of a result: command, versions, device, commit."""

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("piat_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy")


def describe_run() -> dict[str, Any]:
    """Describe the current process: command, time, versions, device and commit."""
    devices = jax.devices()
    return {
        "command": [Path(sys.argv[0]).name, *(_without_home(argument) for argument in sys.argv[1:])],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "devices": [device.device_kind for device in devices],
        "backend": devices[0].platform,
        "machine": platform.machine(),
        "commit": _commit(),
    }


def _without_home(argument: str) -> str:
    """Replace the home folder's path, since run folders are shared and should not reveal it."""
    home = str(Path.home())
    return argument.replace(home, "~") if len(home) > 1 else argument


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the running code, with "+" if the tree has changes; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        ask = {"cwd": folder, "capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **ask).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
