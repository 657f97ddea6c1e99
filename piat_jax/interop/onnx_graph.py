"""Write a network's inference function as an ONNX graph, from its jaxpr."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from piat_jax.core.checks import InputError
from piat_jax.core.files import write_file
from piat_jax.core.types import Array, LogitsFn

OPSET, IR_VERSION = 17, 8
"""ONNX versions that onnxruntime supports from 1.12 on."""
ELEMENTWISE = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
}
INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier")


def write_onnx(path: Path, logits_fn: LogitsFn, image_shape: Sequence[int], *, nchw: bool = False) -> None:
    """Write `logits_fn` as an ONNX model with one input "images" and one output "logits", for any batch size.

    Args:
      path: the file.
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`; its weights become initialisers in float32.
      image_shape: `(height, width, channels)`.
      nchw: whether the input is `[B, C, H, W]` instead.

    Raises:
      InputError: the package onnx is not installed, or the function has an unsupported operation; all operations in
        this library's networks are supported.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("writing ONNX needs the package onnx: pip install 'piat_jax[export]'") from error
    (batch,) = export.symbolic_shape("batch")
    height, width, channels = image_shape
    shape = (batch, channels, height, width) if nchw else (batch, height, width, channels)

    def inference(images: Array) -> Array:
        return logits_fn(images.transpose(0, 2, 3, 1) if nchw else images)

    with jax.default_matmul_precision("highest"):
        closed = jax.make_jaxpr(inference)(jax.ShapeDtypeStruct(shape, np.float32))
    graph = _Graph(onnx)
    (logits,) = graph.inline(closed.jaxpr, closed.consts, ["images"])
    model = graph.model(logits, shape, closed.out_avals[0].shape)
    onnx.checker.check_model(model)
    write_file(path, lambda file: file.write(model.SerializeToString()))


class _Graph:
    """Nodes and initialisers. A value is a tensor's name, or a NumPy array as long as it is constant."""

    def __init__(self, onnx: Any):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[int, str] = {}  # of arrays that are already in the graph

    def model(self, logits: Any, images_shape: Sequence[Any], logits_shape: Sequence[Any]) -> Any:
        """The finished model."""
        helper = self.onnx.helper

        def value(name: str, shape: Sequence[Any]) -> Any:
            sizes = [size if isinstance(size, int) else "batch" for size in shape]
            return helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, sizes)

        self.nodes.append(helper.make_node("Identity", [self.name(logits)], ["logits"]))
        graph = helper.make_graph(
            self.nodes,
            "piat_jax",
            [value("images", images_shape)],
            [value("logits", logits_shape)],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="piat_jax")

    def inline(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Add a jaxpr's equations to the graph and return its results; equations of constants are computed here."""
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(np.asarray, consts)))
        values |= zip(jaxpr.invars, arguments)

        def read(variable: Any) -> Any:
            return np.asarray(variable.val, variable.aval.dtype) if hasattr(variable, "val") else values[variable]

        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            name, params = equation.primitive.name, equation.params
            if name in INLINED:
                inner = params.get("call_jaxpr", params.get("jaxpr"))
                results = self.inline(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
            elif name in SAME:
                results = inputs
            elif _is_known(equation) and not any(isinstance(value, str) for value in inputs):
                found = equation.primitive.bind(*inputs, **params)
                results = [np.asarray(value) for value in (found if equation.primitive.multiple_results else [found])]
            elif name in ELEMENTWISE:
                results = [self.add(ELEMENTWISE[name], inputs)]
            elif name in TRANSLATIONS:
                results = TRANSLATIONS[name](self, equation, *inputs)
            else:
                known = ", ".join(sorted({*ELEMENTWISE, *TRANSLATIONS}))
                raise InputError(f"operation {name!r} is not supported in ONNX export; supported are {known}")
            values |= zip(equation.outvars, results if isinstance(results, list) else [results])
        return [read(variable) for variable in jaxpr.outvars]

    def add(self, kind: str, inputs: Sequence[Any], **attributes: Any) -> str:
        """Add a node with one result, and return the result's name."""
        output = f"{kind.lower()}_{len(self.nodes)}"
        names = [self.name(value) for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [output], **attributes))
        return output

    def name(self, value: Any) -> str:
        """The name of a value; an array becomes an initialiser."""
        if isinstance(value, str):
            return value
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value).reshape(np.shape(value))
        return name

    def permuted(self, value: Any, order: Sequence[int]) -> Any:
        """Permute a value's axes."""
        if tuple(order) == tuple(range(len(order))):
            return value
        return self.add("Transpose", [value], perm=list(order)) if isinstance(value, str) else value.transpose(order)

    def shaped(self, value: Any, shape: Sequence[Any]) -> Any:
        """Reshape a value; at most one size, the batch's, may be unknown."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise InputError(f"a reshape to {tuple(shape)} is not supported in ONNX export: only one size may be open")
        return self.add("Reshape", [value, np.array(sizes, np.int64)])

    def sizes(self, shape: Sequence[Any]) -> Any:
        """A shape as a tensor; an unknown size is that of the batch."""
        if all(isinstance(size, int) for size in shape):
            return np.array(shape, np.int64)
        batch = self.add("Slice", [self.add("Shape", ["images"]), np.array([0]), np.array([1])])
        parts = [np.array([size], np.int64) if isinstance(size, int) else batch for size in shape]
        return self.add("Concat", parts, axis=0)


def _is_known(equation: Any) -> bool:
    """Whether the results' sizes are known, so that they can be computed here."""
    return all(isinstance(size, int) for variable in equation.outvars for size in variable.aval.shape)


def _convolution(graph: _Graph, equation: Any, images: Any, kernel: Any) -> Any:
    params = equation.params
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise InputError("a transposed convolution is not supported in ONNX export")
    (top, bottom), (left, right) = params["padding"]
    inputs = [graph.permuted(images, numbers.lhs_spec), graph.permuted(kernel, numbers.rhs_spec)]
    channels_first = graph.add(
        "Conv",
        inputs,
        strides=list(params["window_strides"]),
        pads=[top, left, bottom, right],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return graph.permuted(channels_first, np.argsort(numbers.out_spec).tolist())


def _dot(graph: _Graph, equation: Any, left: Any, right: Any) -> Any:
    (left_summed, right_summed), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(variable.aval.shape) for variable in equation.invars]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    of_left, of_right = [next(letters) for _ in range(ranks[0])], [next(letters) for _ in range(ranks[1])]
    for ours, theirs in zip((*left_summed, *left_batch), (*right_summed, *right_batch)):
        of_right[theirs] = of_left[ours]
    result = [of_left[axis] for axis in left_batch]
    result += [letter for axis, letter in enumerate(of_left) if axis not in (*left_summed, *left_batch)]
    result += [letter for axis, letter in enumerate(of_right) if axis not in (*right_summed, *right_batch)]
    equation_text = f"{''.join(of_left)},{''.join(of_right)}->{''.join(result)}"
    if not left_batch and tuple(left_summed) == (ranks[0] - 1,) and tuple(right_summed) == (0,) and ranks[1] == 2:
        return graph.add("MatMul", [left, right])
    return graph.add("Einsum", [left, right], equation=equation_text)


def _broadcast(graph: _Graph, equation: Any, value: Any, *_: Any) -> Any:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    ones: list[Any] = [1] * len(shape)
    for axis, size in zip(axes, before):
        ones[axis] = size
    value = graph.shaped(value, ones) if isinstance(value, str) else value.reshape(ones)
    return value if list(shape) == ones else graph.add("Expand", [value, graph.sizes(shape)])


def _slice(graph: _Graph, equation: Any, value: Any) -> Any:
    params = equation.params
    kept = [
        (axis, start, limit, step)
        for axis, (start, limit, step, size) in enumerate(
            zip(
                params["start_indices"],
                params["limit_indices"],
                params["strides"] or [1] * len(params["start_indices"]),
                equation.invars[0].aval.shape,
            )
        )
        if not (start == 0 and step == 1 and limit is size) and (start, limit, step) != (0, size, 1)
    ]
    axes, starts, limits, steps = (np.array(part, np.int64) for part in zip(*kept))
    return graph.add("Slice", [value, starts, limits, axes, steps])


def _largest(graph: _Graph, equation: Any, value: Any) -> Any:
    """The maximum of windows of images, channels last."""
    params = equation.params
    windows, strides, pads = (params[name] for name in ("window_dimensions", "window_strides", "padding"))
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if len(windows) != 4 or dilated or (windows[0], windows[3]) != (1, 1) or (strides[0], strides[3]) != (1, 1):
        raise InputError(f"a maximum over windows {tuple(windows)} is not supported in ONNX export")
    (top, bottom), (left, right) = pads[1:3]
    channels_first = graph.add(
        "MaxPool",
        [graph.permuted(value, (0, 3, 1, 2))],
        kernel_shape=list(windows[1:3]),
        strides=list(strides[1:3]),
        pads=[top, left, bottom, right],
    )
    return graph.permuted(channels_first, (0, 2, 3, 1))


def _padded(graph: _Graph, equation: Any, value: Any, filling: Any) -> Any:
    if any(inside for _, _, inside in equation.params["padding_config"]):
        raise InputError("padding between values is not supported in ONNX export")
    before, after = ([part[side] for part in equation.params["padding_config"]] for side in (0, 1))
    return graph.add("Pad", [value, np.array([*before, *after], np.int64), filling])


def _gather(graph: _Graph, equation: Any, value: Any, indices: Any) -> Any:
    """One window at a constant place, as in `x[:, 0]`."""
    params = equation.params
    if isinstance(indices, str) or indices.ndim != 1:
        raise InputError("indexing by variable indices is not supported in ONNX export")
    axes = np.array(params["dimension_numbers"].start_index_map, np.int64)
    starts = indices.astype(np.int64)
    limits = starts + np.array([params["slice_sizes"][axis] for axis in axes], np.int64)
    return graph.shaped(graph.add("Slice", [value, starts, limits, axes]), equation.outvars[0].aval.shape)


def _reduced(kind: str) -> Callable[..., Any]:
    def translate(graph: _Graph, equation: Any, value: Any) -> Any:
        axes = [int(axis) for axis in equation.params["axes"]]
        if kind == "ReduceSum":  # its axes are an input from opset 13 on
            return graph.add(kind, [value, np.array(axes, np.int64)], keepdims=0)
        return graph.add(kind, [value], axes=axes, keepdims=0)

    return translate


def _power(graph: _Graph, equation: Any, value: Any) -> Any:
    return graph.add("Pow", [value, np.array(equation.params["y"], np.float32)])


def _converted(graph: _Graph, equation: Any, value: Any) -> Any:
    kind = graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return graph.add("Cast", [value], to=kind)


def _split(graph: _Graph, equation: Any, value: Any) -> list[Any]:
    axis, results, start = equation.params["axis"], [], 0
    for size in equation.params["sizes"]:
        numbers = (np.array([number], np.int64) for number in (start, start + size, axis))
        results.append(graph.add("Slice", [value, *numbers]))
        start += size
    return results


def _unstack(graph: _Graph, equation: Any, value: Any) -> list[Any]:
    axis = equation.params["axis"]
    return [
        graph.add("Gather", [value, np.array(number, np.int64)], axis=axis) for number in range(len(equation.outvars))
    ]


TRANSLATIONS: Mapping[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda graph, equation, value, *_: graph.shaped(value, equation.params["new_sizes"]),
    "squeeze": lambda graph, equation, value: graph.shaped(value, equation.outvars[0].aval.shape),
    "transpose": lambda graph, equation, value: graph.permuted(value, equation.params["permutation"]),
    "concatenate": lambda graph, equation, *values: graph.add("Concat", values, axis=equation.params["dimension"]),
    "slice": _slice,
    "gather": _gather,
    "reduce_window_max": _largest,
    "pad": _padded,
    "split": _split,
    "unstack": _unstack,  # since jax 0.12
    "reduce_sum": _reduced("ReduceSum"),
    "reduce_max": _reduced("ReduceMax"),
    "integer_pow": _power,
    "square": lambda graph, equation, value: graph.add("Mul", [value, value]),
    "rsqrt": lambda graph, equation, value: graph.add("Reciprocal", [graph.add("Sqrt", [value])]),
    "erfc": lambda graph, equation, value: graph.add("Sub", [np.float32(1), graph.add("Erf", [value])]),
    "convert_element_type": _converted,
}
