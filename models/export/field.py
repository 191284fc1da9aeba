"""The receptive field of a mask: computed from the graph, and checked in onnxruntime on random images.

A large image is segmented in tiles, each with as many real pixels around it as affect it. So a field that is too small,
or a network that depends on where a tile lies, would leave seams.
"""

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from convoy.models import runtime
from convoy.models.analysis import onnx_reader
from convoy.models.analysis.reach import Reach
from convoy.models.errors import BadNetworkFile, ImpossibleLayer, ParityRefused
from convoy.models.runtime import Session
from convoy.service import metadata
from convoy.service.metadata import Context, Document, InputSpec, ReceptiveField

SIDE = 512  # pixels, about, of the images for which the field is computed
LEAST = 64  # pixels: at least as large are the middle of a tile, and the side along which an image is not cut
MAX_SIDE = 3072  # of a trial image: beyond, a field is not checked, and nothing is promised
MAX_DIFFERENCE = 0.02  # of scores, as a share of their range: half precision rounds otherwise in maps of other sizes
MAX_CHANGED = 1e-3  # share of pixels whose class may change with that

_BOTH = (0, 1)  # the axes: height, width


def of_mask(graph: onnx.ModelProto, document: Document) -> ReceptiveField | None:
    """Returns the receptive field of a graph's mask; None for a graph without a mask of any size, or one with unknown
    operations.

    An axis has a context if the computed field is the same for images of several sizes, also those that are no
    multiples of the stride, and a tile with that context has the mask of the whole image. Raises ParityRefused if
    pixels outside of the computed field change a class.
    """
    spec = document.input
    if document.task != "segmentation" or spec is None or spec.fit != "pad":
        return None
    try:
        contexts = computed(graph, spec)
    except (BadNetworkFile, ImpossibleLayer):
        return None
    if all(context is None for context in contexts):
        return ReceptiveField()
    trials = _Trials(graph, spec)
    height, width = (trials.confirmed(contexts, axis) for axis in _BOTH)
    return ReceptiveField(height=height, width=width)


def computed(graph: onnx.ModelProto, spec: InputSpec) -> list[Context | None]:
    """Returns the context along each axis, from the graph alone. Raises BadNetworkFile, ImpossibleLayer."""
    side = _rounded(max(SIDE, spec.min_height, spec.min_width), spec.multiple)
    first = _contexts(graph, (side, side))
    strides = [1 if context is None else context.stride for context in first]
    more = lcm(*strides, spec.multiple)
    # Two that are larger by multiples of the stride, and two that are not, where the network accepts them.
    sides = (side + more, side + 3 * more, side + spec.multiple, side + 3 * spec.multiple)
    sizes = [(side, other) for other in sides] + [(other, side) for other in sides]
    others = [_contexts(graph, size) for size in sizes]
    return [first[axis] if all(each[axis] == first[axis] for each in others) else None for axis in _BOTH]


def _contexts(graph: onnx.ModelProto, size: tuple[int, int]) -> list[Context | None]:
    fields = onnx_reader.field_of(graph, metadata.MASK, size)
    return [None, None] if fields is None else [_context(field) for field in fields]


def _context(field: Reach) -> Context | None:
    period = len(field.first)
    if field.jump != period:  # the whole axis, or a mask of another size than the image's
        return None
    return Context(
        before=max(0, *(place - first for place, first in enumerate(field.first)), 0),
        after=max(0, *(last - place for place, last in enumerate(field.last)), 0),
        stride=period,
    )


class _Part(NamedTuple):
    """A tile along one axis, from `start` to `stop`, of which `first` to `last` is compared."""

    start: int
    stop: int
    first: int
    last: int


class _Trials:
    """Runs a graph on random images, whole and in parts."""

    def __init__(self, graph: onnx.ModelProto, spec: InputSpec) -> None:
        self.spec = spec
        self.session, self.names = _with_scores(graph)
        self.random = np.random.default_rng(0)
        self.least = [_rounded(max(LEAST, side), spec.multiple) for side in (spec.min_height, spec.min_width)]

    def confirmed(self, contexts: list[Context | None], axis: int) -> Context | None:
        """Returns the context of an axis if tiles along it have the mask of the whole image. Raises ParityRefused."""
        context = contexts[axis]
        if context is None:
            return None
        multiple, stride = self.spec.multiple, lcm(context.stride, self.spec.multiple)
        before, after = _rounded(context.before, stride), _rounded(context.after, stride)
        core = _rounded(max(self.least), stride)
        # Far enough for a network to show that it depends on the place; an odd multiple, which is none of a larger one.
        start = (LEAST // stride | 1) * stride
        stop = start + before + core + after
        length = stop + stride + (multiple if multiple % stride else 0)
        if length > MAX_SIDE:
            return None
        image = self._noise(length, axis)
        whole = self._outputs(image)
        first, last = start + before, start + before + core
        outside = np.ones(length, bool)
        outside[first - context.before : last + context.after] = False
        self._check_outside(image, whole, _Part(0, length, first, last), outside, axis)
        parts = [_Part(start, stop, first, last), _Part(start, length, first, length), _Part(0, stop, 0, last)]
        return context if all(self._same(image, whole, part, axis) for part in parts) else None

    def _noise(self, length: int, axis: int) -> NDArray[np.uint8]:
        sides = [*self.least]
        sides[axis] = length
        # Large squares as well as noise, so that all layers have something to distinguish.
        squares = self.random.integers(0, 200, (sides[0] // 16 + 1, sides[1] // 16 + 1, self.spec.channels))
        smooth = squares.repeat(16, axis=0).repeat(16, axis=1)[: sides[0], : sides[1]]
        return np.asarray(smooth + self.random.integers(0, 56, smooth.shape), np.uint8)

    def _outputs(self, image: NDArray[np.uint8]) -> list[NDArray[np.generic]]:
        """Returns outputs of one image, the mask first: (..., H, W) each."""
        return [np.asarray(each[0]) for each in self.session.run(self.names, {metadata.IMAGE: image[None]})]

    def _check_outside(
        self,
        image: NDArray[np.uint8],
        whole: list[NDArray[np.generic]],
        part: _Part,
        outside: NDArray[np.bool_],
        axis: int,
    ) -> None:
        other = image.copy()
        rest = np.flatnonzero(outside)
        np.moveaxis(other, axis, 0)[rest] = 255 - np.moveaxis(image, axis, 0)[rest]
        pairs = zip(whole, self._outputs(other), strict=True)
        changed = sum(int((_cut(one, part, axis) != _cut(two, part, axis)).sum()) for one, two in pairs)
        if changed:
            raise ParityRefused(
                f"the receptive field computed for the mask is too small along its {('height', 'width')[axis]}: "
                f"{changed} values depend on pixels outside of it"
            )

    def _same(self, image: NDArray[np.uint8], whole: list[NDArray[np.generic]], part: _Part, axis: int) -> bool:
        window = [slice(None), slice(None)]
        window[axis] = slice(part.start, part.stop)
        inner = part._replace(first=part.first - part.start, last=part.last - part.start)
        answers = self._outputs(image[tuple(window)])
        pairs = [(_cut(one, part, axis), _cut(two, inner, axis)) for one, two in zip(whole, answers, strict=True)]
        mask, found = pairs[0]
        if mask.shape != found.shape or (mask != found).mean() > MAX_CHANGED:
            return False
        for one, two in pairs[1:]:
            values, others = one.astype(np.float64), two.astype(np.float64)
            if np.abs(values - others).max() > MAX_DIFFERENCE * max(np.ptp(values), 1e-6):
                return False
        return True


def _cut(output: NDArray[np.generic], part: _Part, axis: int) -> NDArray[np.generic]:
    return np.moveaxis(output, output.ndim - 2 + axis, 0)[part.first : part.last]


def _with_scores(graph: onnx.ModelProto) -> tuple[Session, list[str]]:
    """Returns a session, and the names of its mask and of the scores that it chooses from, if they are (N, C, H, W)."""
    makers = dict(_makers(graph))
    node = makers.get(metadata.MASK)
    while node is not None and node.op_type in ("Cast", "Squeeze", "Identity"):
        node = makers.get(node.input[0])
    if node is None or node.op_type != "ArgMax":
        return runtime.session(graph), [metadata.MASK]
    axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
    if axis not in (1, -3):
        return runtime.session(graph), [metadata.MASK]
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    scores = node.input[0]
    if scores not in {output.name for output in copy.graph.output}:
        copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(scores))
    return runtime.session(copy), [metadata.MASK, scores]


def _makers(graph: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    for node in graph.graph.node:
        for output in node.output:
            yield output, node


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
