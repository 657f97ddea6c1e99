"""Memory sizes of this machine and of a device."""

import contextlib
import os
import sys

import jax

try:
    import resource
except ImportError:  # on Windows
    resource = None


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


def peak_memory() -> int | None:
    """The peak memory so far, in bytes: of the fullest device of this process, on a CPU of the process itself.

    None where the system does not say.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return _peak_of_process()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
        return max((peak for peak in peaks if peak is not None), default=None)
    return None


def _peak_of_process() -> int | None:
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_units(count: float) -> str:
    """Bytes as text in the largest unit that gives at least 1.

    >>> in_units(153_600_000_000), in_units(3072)
    ('153.6 GB', '3.1 kB')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
