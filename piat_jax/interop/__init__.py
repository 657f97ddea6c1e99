"""Conversion to and from other frameworks; each is imported only when it is used."""

from piat_jax.core.renamed import renamed
from piat_jax.interop.compiled import read_exported, write_exported
from piat_jax.interop.export import About, save_safetensors, save_torch, state_dict
from piat_jax.interop.onnx_graph import write_onnx
from piat_jax.interop.torch_adapter import torch_logits_fn
from piat_jax.interop.weights import Loaded, LoadReport, load_weights

__all__ = [
    "About",
    "LoadReport",
    "Loaded",
    "load_weights",
    "read_exported",
    "save_safetensors",
    "save_torch",
    "state_dict",
    "torch_logits_fn",
    "write_exported",
    "write_onnx",
]

__getattr__ = renamed(__name__, {"Report": "LoadReport"})
