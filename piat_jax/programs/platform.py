"""The platform that a program is written for; decided only here."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from piat_jax.core.checks import check_choice

PLATFORMS = ("cpu", "gpu", "tpu")
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """The platform that programs are written for: that of `compiling_for`, else that of JAX's default device.

    >>> with compiling_for("tpu"):
    ...     platform()
    'tpu'
    """
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """In this context programs are written for `target`, one of `PLATFORMS`, even without such a device.

    The target is read while a program is traced. Programs that JAX traced and cached before do not change.
    """
    check_choice("target", target, PLATFORMS)
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)
