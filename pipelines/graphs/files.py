"""Modules of torch as files of ONNX: any batch and size, one file each, and nothing in them of where they
were made.

Left out: what the modules compute (`networks.py`, `step.py`), and whether onnxruntime agrees
(`agreement.py`).
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from pipelines.graphs.networks import PlainSearch
from tokenizer.installation import install_extra

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
# A message of protobuf ends here.
MAX_BYTES = (1 << 31) - (1 << 20)

# An axis: its size, or the name of what it may be, with what its size is a multiple of.
Axis: TypeAlias = int | tuple[str, int]


class Port(NamedTuple):
    """An input or output: its name and axes."""

    name: str
    axes: tuple[Axis, ...]


def require_packages() -> None:
    """`ValueError` with the command to run where a package is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(f"exporting needs {', '.join(missing)}: {install_extra('onnx')}")


def versions() -> dict[str, str]:
    """Of what makes and checks the files."""
    found = {"torch": str(torch.__version__), "opset": str(OPSET)}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def to_onnx(
    module: nn.Module,
    name: str,
    examples: Sequence[Tensor],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
) -> Any:
    """An onnx.ModelProto of `module`, whose inputs are like `examples` but for the axes with names.
    `ValueError` that names the layer which cannot be exported."""
    named = [{i: a for i, a in enumerate(port.axes) if isinstance(a, tuple)} for port in inputs]
    dims = {name: torch.export.Dim(name) for axes in named for name, _ in axes.values()}
    shapes = tuple({i: n * dims[name] if n > 1 else dims[name] for i, (name, n) in a.items()} for a in named)
    weights = sum(p.numel() * p.element_size() for p in module.state_dict().values())
    if weights > MAX_BYTES:
        raise ValueError(f"{name}: {weights} bytes of weights, and a file of ONNX holds at most {MAX_BYTES}")
    program = None
    try:
        with torch.no_grad(), _quiet():
            with PlainSearch():
                example = tuple(x.contiguous() for x in examples)  # or strides would be traced as sizes
                program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
            assert made is not None
            model = made.model_proto
    except Exception as error:  # of many kinds, as layers may be anything
        layer = _layer_that_ran(error, module) or _layer_converted(error, program)
        reason = next(iter(str(_innermost(error)).strip().splitlines()), "") or type(error).__name__
        raise ValueError(
            f"{name} cannot be exported: {'layer ' + layer if layer else 'its graph'}: {reason:.300}"
        ) from error
    return _named_ports(_anonymous(model), inputs, outputs)


def _size(axis: Axis) -> int | str:
    """An axis as the files name it."""
    if isinstance(axis, int):
        return axis
    name, multiple = axis
    return name if multiple == 1 else f"{multiple}*{name}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that it does not need, and of itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _layer_that_ran(error: BaseException | None, module: nn.Module) -> str:
    """The innermost layer in which an error was raised, by name; "" if it was none's."""
    names = {id(layer): name for name, layer in module.named_modules() if name}
    found = ""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            found = names.get(id(owner), found)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def _layer_converted(error: BaseException | None, program: Any) -> str:
    """The layer whose operator the exporter of ONNX does not know; "" where it does not tell."""
    text = ""
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__ or error.__context__
    if program is None:
        return ""
    # As the exporter takes it apart, which splits operators.
    for node in program.run_decompositions().graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and node.op == "call_function" and str(node.target) in text:
            return str(list(stack.values())[-1][0])
    return ""


def _innermost(error: BaseException) -> BaseException:
    """What an error was caused by."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _anonymous(model: Any) -> Any:
    """Without the lines of source, with their paths, that the exporter writes to every node, and without its
    guesses of inner shapes."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    for function in model.functions:
        function.doc_string = ""
        del function.value_info[:]
        for part in (function, *function.node):
            del part.metadata_props[:]
            part.doc_string = ""
    return model


def _named_ports(model: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> Any:
    """With names and axes as said."""
    graph = model.graph
    for infos, ports in ((graph.input, inputs), (graph.output, outputs)):
        for info, port in zip(infos, ports, strict=True):
            _rename(graph, info.name, port.name)
            for dim, axis in zip(info.type.tensor_type.shape.dim, port.axes, strict=True):
                if isinstance(axis, tuple):
                    dim.Clear()
                    dim.dim_param = str(_size(axis))
    return model


def _rename(graph: Any, old: str, new: str) -> None:
    """Another name for a value of the graph, which may be an output and used inside too."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for info in (*graph.input, *graph.output, *graph.initializer):
        if info.name == old:
            info.name = new


def padded(model: Any, stride: int, mode: str, axes: Sequence[str]) -> Any:
    """The graph with its first input, of sizes that are multiples of the stride, extended to them inside, so
    that it takes any `axes` sizes."""
    from onnx import TensorProto, helper

    graph = model.graph
    name, first = graph.input[0].name, "padded"
    for node in graph.node:
        node.input[:] = [first if i == name else i for i in node.input]
    for dim, axis in zip(list(graph.input[0].type.tensor_type.shape.dim)[2:], axes, strict=True):
        dim.Clear()
        dim.dim_param = axis
    constants = {
        "pad_stride": [stride],
        "pad_before": [0] * (len(axes) + 4),  # at the beginning of all axes, and at the end of two
    }
    for constant, values in constants.items():
        graph.initializer.append(helper.make_tensor(constant, TensorProto.INT64, [len(values)], values))
    new = [
        helper.make_node("Shape", [name], ["pad_size"], start=2),
        helper.make_node("Neg", ["pad_size"], ["pad_negative"]),
        helper.make_node("Mod", ["pad_negative", "pad_stride"], ["pad_after"]),
        helper.make_node("Concat", ["pad_before", "pad_after"], ["pad_widths"], axis=0),
        helper.make_node("Pad", [name, "pad_widths"], [first], mode=mode),
    ]
    for i, node in enumerate(new):
        graph.node.insert(i, node)
    return model


def write(model: Any, path: Path) -> None:
    """Check a model and write it."""
    import onnx

    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def described(path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> Mapping[str, Any]:
    """A file for export.json: its size, and what goes in and comes out."""
    ports = {
        kind: {port.name: [_size(axis) for axis in port.axes] for port in all_}
        for kind, all_ in (("inputs", inputs), ("outputs", outputs))
    }
    return {"bytes": path.stat().st_size, **ports}
