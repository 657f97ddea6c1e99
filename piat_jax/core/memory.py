"""Memory sizes of this machine and of a device."""

import contextlib
import os

import jax


def host_memory() -> int | None:
    """Bytes of this machine's memory; None if the system does not report it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # as on Windows
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def device_memory() -> int | None:
    """Bytes available to arrays on a device of this process, for a CPU the machine's memory; None if not reported."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def in_units(count: float) -> str:
    """Bytes as text in the largest unit that gives at least 1.

    >>> in_units(153_600_000_000), in_units(3072)
    ('153.6 GB', '3.1 kB')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
