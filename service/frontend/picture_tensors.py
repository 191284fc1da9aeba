"""Pictures in tensors: a request of the Open Inference Protocol whose image input has files in place of pixels.

The input has datatype BYTES and shape [N] or [N, 1], a JPEG or PNG file each; the outputs are those for their pixels.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convoy.service import declared
from convoy.service.errors import BadTensor, RunFailed, named
from convoy.service.frontend.call import Call, observe
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.prepare import Chunk, Preparer
from convoy.service.metadata import IMAGE
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.repository import Version

_LENGTH = 4  # bytes before each string, little-endian


class Outputs(NamedTuple):
    """What the network answers to all pictures.

    values      (N, ...) by the output's number
    seconds     of the picture that was answered last: see observe
    batch_size  of its batch
    """

    values: Mapping[int, NDArray[Any]]
    seconds: Sequence[float]
    batch_size: int


def pictures(
    request: inference_pb2.ModelInferRequest, row: Version, payloads: Mapping[int, memoryview]
) -> list[pb.Image] | None:
    """Returns the files in a request; None if it has tensors.

    payloads  raw contents that are not in the message

    Raises BadTensor if the shape or the lengths do not fit the contents.
    """
    if row.document is None or row.document.input is None or len(request.inputs) != 1:
        return None
    (tensor,) = request.inputs
    if tensor.name != IMAGE or tensor.datatype != "BYTES":
        return None
    what = f"input {named(tensor.name)}"
    if raw := payloads.get(0) or (request.raw_input_contents[0] if len(request.raw_input_contents) == 1 else b""):
        files = _strings(what, raw)
    else:
        files = list(tensor.contents.bytes_contents)
    shape = list(tensor.shape)
    if shape not in ([len(files)], [len(files), 1]):
        raise BadTensor(f"{what} has {len(files)} files and shape {shape[:8]}, want {[len(files)]}")
    return [pb.Image(encoded=file) for file in files]


async def run(
    images: Sequence[pb.Image], call: Call, row: Version, preparer: Preparer, catalogue: Catalogue
) -> Outputs:
    """Runs pictures. The error of one is that of the request. Raises what preparation and the engine raise, and
    BadTensor if the answers have different shapes."""
    call.every_output = True
    chunks = preparer.chunks(images, call, row.batch_size)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(chunk, call, row, preparer, catalogue)) for chunk in chunks]
    except BaseExceptionGroup as errors:  # the first one ends the others
        raise errors.exceptions[0] from None
    answered = [task.result() for task in tasks]
    order = np.argsort([number for chunk in chunks for number in chunk.numbers])
    values = {}
    for output in answered[0].values:
        parts = [each.values[output] for each in answered]
        if len({part.shape[1:] for part in parts}) > 1:
            raise BadTensor(
                "the pictures have answers of different shapes, want pictures of one size, or one a request"
            )
        values[output] = np.concatenate(parts)[order] if len(parts) > 1 else parts[0]
    last = max(answered, key=lambda each: each.seconds[-1])
    return Outputs(values, last.seconds, last.batch_size)


async def _run(chunk: Chunk, call: Call, row: Version, preparer: Preparer, catalogue: Catalogue) -> Outputs:
    rows = len(chunk.images)
    with await preparer.prepare(chunk, call) as lease:
        answer, outputs = await lease.run(
            row, rows=rows, in_flight=catalogue.users(row), deadline=call.deadline, low_priority=call.low_priority
        )
        for number, values in outputs.items():
            if reason := declared.wrong(row.document, row.outputs[number].name, values):
                raise RunFailed(reason)
        copies = {number: values.copy() for number, values in outputs.items()}
    return Outputs(copies, observe(call, lease, answer, rows), answer.batch_size)


def _strings(what: str, raw: bytes | memoryview) -> list[bytes]:
    found, place = [], 0
    while place < len(raw):
        end = place + _LENGTH + int.from_bytes(raw[place : place + _LENGTH], "little")
        if end > len(raw):
            raise BadTensor(f"{what} has BYTES that are cut off: want each after its length in 4 bytes, little-endian")
        found.append(bytes(raw[place + _LENGTH : end]))
        place = end
    return found
