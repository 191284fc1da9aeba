"""Checks whether an adopted network supports batching, and names the node that prevents it."""

import re

import onnx

from convoy.models.errors import BadNetworkFile
from convoy.models.onnx_import.names import PREFIX
from convoy.models.onnx_import.original import noise, session, words
from convoy.models.settings import Size
from convoy.service import metadata

BATCHES = (1, 3)  # batch sizes tested


def check(graph: onnx.ModelProto, size: Size, channels: int, batch: int | str) -> None:
    """Runs it on images of that size. Raises BadNetworkFile, naming the node; `batch` is the file's batch size."""
    trouble = f"batch size {batch} cannot be made free" if isinstance(batch, int) else "it does not take several images"
    running = session(graph, optimised=False)  # not optimised, so that its nodes keep the names in the file
    for count in BATCHES:
        try:
            (first, *_) = running.run(None, {metadata.IMAGE: noise(size, channels, count)})
        except Exception as error:  # onnxruntime's exceptions for an invalid graph
            raise BadNetworkFile(f"{trouble}: {_named(error)} forbids it: {words(error)}") from None
        if len(first) != count:
            raise BadNetworkFile(
                f"{trouble}: {_culprit(graph, size, channels)} answers {len(first)} for {count} images"
            )


def _named(error: Exception) -> str:
    kind, name = re.search(r"running (\w+) node", str(error)), re.search(r"Name:'(.*?)'", str(error))
    if name is None:
        return "a node"
    return f"node {name[1].removeprefix(PREFIX)!r}" + (f" ({kind[1]})" if kind else "")


def _culprit(graph: onnx.ModelProto, size: Size, channels: int) -> str:
    """Returns the first node whose output does not grow with the batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    names = [name for node in copy.graph.node for name in node.output[:1] if name]
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    running = session(copy)
    one, several = (
        dict(zip(names, running.run(names, {metadata.IMAGE: noise(size, channels, count)}), strict=True))
        for count in BATCHES
    )
    grown = {name for name in names if several[name].size == BATCHES[-1] * one[name].size}
    grown.add(metadata.IMAGE)
    for node in copy.graph.node:
        if grown.intersection(node.input) and node.output[0] not in grown and several[node.output[0]].dtype.kind == "f":
            return f"node {node.name.removeprefix(PREFIX)!r} ({node.op_type})"
    return "a node"
