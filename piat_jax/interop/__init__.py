"""The way to other frameworks; each is imported only where it is used."""

from piat_jax.interop.torch_adapter import torch_logits_fn

__all__ = ["torch_logits_fn"]
