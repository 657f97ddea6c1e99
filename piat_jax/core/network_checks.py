"""Checks of networks that are not ours: what is called, what it returns, and why it fails."""

import inspect
from typing import Any

from piat_jax.core.checks import InputError, a_, described


def check_network(logits_fn: object) -> None:
    """Raise InputError unless `logits_fn` is a function of images: not a PyTorch module, and not without parameters.

    >>> check_network("resnet18")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: logits_fn='resnet18' cannot be called; give a function of images, to logits
    """
    if _is_of("torch", logits_fn):
        raise InputError(
            f"logits_fn is a PyTorch {type(logits_fn).__name__}, which JAX cannot differentiate; "
            "give piat_jax.interop.torch_logits_fn(module.eval())"
        )
    if _is_of("flax", logits_fn) and getattr(logits_fn, "scope", logits_fn) is None:
        raise InputError(
            f"logits_fn is a Linen {type(logits_fn).__name__} without its parameters; "
            "give lambda images: module.apply(variables, images)"
        )
    if callable(logits_fn):
        return
    if callable(getattr(logits_fn, "apply", None)):
        raise InputError(
            f"logits_fn is {a_(type(logits_fn).__name__)} without its parameters; give lambda images: "
            "network.apply(params, images) (after haiku.transform, network.apply(params, None, images))"
        )
    if hasattr(logits_fn, "shape") or len(repr(logits_fn)) > 60:
        raise InputError(f"logits_fn is {described(logits_fn)}; the order is (logits_fn, images, labels)")
    raise InputError(f"logits_fn={logits_fn!r} cannot be called; give a function of images, to logits")


def check_logits(logits: Any, rows: int) -> None:
    """Raise InputError unless a network's output is logits `[rows, K]`, K at least 2.

    >>> check_logits(([], {}), 4)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: logits_fn returns a tuple; give logits alone: lambda images: network(images)[0]
    """
    if isinstance(logits, (tuple, list)):
        raise InputError(
            f"logits_fn returns a {type(logits).__name__}; give logits alone: lambda images: network(images)[0]"
        )
    shape = getattr(logits, "shape", None)
    if shape is None:
        raise InputError(f"logits_fn returns {type(logits).__name__}; it must return an array of logits [{rows}, K]")
    if len(shape) != 2 or shape[0] != rows or shape[1] < 2:
        raise InputError(
            f"logits_fn gives logits of shape {shape} for {rows} images; they must be [{rows}, K] with K >= 2"
        )


def checked_logits(logits_fn: Any, images: Any, *keys: Any) -> Any:
    """`logits_fn(images, *keys)`, with clear errors for common mistakes.

    Raises:
      InputError: the output is not logits `[B, K]`; the network computes with NumPy; it fails, and is an Equinox module
        called on a batch, or in training mode, or the images have their channels first.
    """
    import jax

    try:
        logits = logits_fn(images, *keys)
    except jax.errors.TracerArrayConversionError as error:
        raise InputError("logits_fn computes with NumPy, which JAX cannot differentiate; use jax.numpy") from error
    except InputError:
        raise
    except Exception as error:
        if cause := _cause(error, logits_fn, images.shape):
            raise InputError(cause) from error
        note = f"images have shape [N, {', '.join(map(str, images.shape[1:]))}]; logits_fn takes [N, H, W, C]"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
    check_logits(logits, images.shape[0])
    return logits


def check_takes_keys(logits_fn: Any, why: str) -> None:
    """Raise InputError if `logits_fn` cannot be called as `logits_fn(images, keys)`.

    >>> check_takes_keys(lambda images: images, "eot=20")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: eot=20 calls logits_fn(images, keys), which takes no keys; add the argument
    """
    try:
        signature = inspect.signature(logits_fn)
    except (TypeError, ValueError):  # a callable without a readable signature
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise InputError(f"{why} calls logits_fn(images, keys), which takes no keys; add the argument") from None


def _cause(error: Exception, logits_fn: object, shape: tuple[int, ...]) -> str:
    """The likely cause of a network's error, with its fix; "" if it is not a known one."""
    if type(error).__name__ == "TraceContextError" and _is_of("flax", error):
        return (
            "logits_fn updates its own state, as BatchNorm and Dropout of Flax NNX do in training mode; "
            "call net.eval() first"
        )
    if "Old and new values have different structures" in str(error):
        return (
            "logits_fn updates an Equinox State, as eqx.nn.BatchNorm does in training mode; "
            "give the network of eqx.nn.inference_mode(module)"
        )
    if _is_of("equinox", logits_fn):
        return (
            f"logits_fn is an Equinox {type(logits_fn).__name__}, which takes one example; give jax.vmap(module), "
            "and eqx.nn.inference_mode(module) if it has BatchNorm or Dropout"
        )
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        return (
            f"images have shape [N, {', '.join(map(str, shape[1:]))}], which looks like [N, C, H, W], but logits_fn "
            "takes [N, H, W, C]; give images.transpose(0, 2, 3, 1)"
        )
    return ""


def _is_of(package: str, value: object) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)
