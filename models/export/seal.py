"""The last step before a model file is written: an example with its answer, and the digest of the graph."""

import hashlib

import msgspec
import onnx

from convoy.models import runtime
from convoy.service import golden, metadata


def sealed(graph: onnx.ModelProto) -> bytes:
    """Returns the content of the model file: the graph with its properties, and a further one, the example. Changes
    the properties of `graph`."""
    document = metadata.decode({entry.key: entry.value for entry in graph.metadata_props})
    assert document is not None, "a graph without metadata"
    properties = {entry.key: entry.value for entry in graph.metadata_props if entry.key != golden.KEY}
    session = runtime.session(graph)
    names = [output.name for output in session.get_outputs()]
    example = golden.measure(
        lambda values: dict(zip(names, session.run(names, {document.takes.name: values}), strict=True)),
        document,
        metadata.input_shape(document),
    )
    del graph.metadata_props[:]
    body = graph.SerializeToString()
    digest = hashlib.sha256(body).hexdigest()
    for sealing in (msgspec.structs.replace(example, graph_bytes=len(body), graph_sha256=digest), example):
        onnx.helper.set_model_props(graph, {**properties, golden.KEY: golden.encode(sealing)})
        content: bytes = graph.SerializeToString()
        if content.startswith(body):
            break  # otherwise local functions follow the properties, and there is no such part
    return content
