"""Detects the kind of output of a file made elsewhere, from its outputs, and the post-processing it needs."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from convoy.models.errors import BadNetworkFile
from convoy.models.onnx_import.onnx_file import Tensor, likely_task
from convoy.models.onnx_import.original import Original, noise
from convoy.models.settings import Size, Tail, Task

Values = Literal["logits", "probabilities", "indices"]

NOT_TENSORS = ("sequence", "map", "optional", "sparse_tensor", "string")


class Output(NamedTuple):
    """The network's output. `axis` is the class axis, None for a mask without one; `rank` is the number of axes. A
    `single` number still means two classes: it is the probability of the second."""

    name: str
    task: Task
    axis: int | None
    rank: int
    classes: int
    values: Values
    single: bool = False

    def shares(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the probabilities in such outputs, (predictions, classes) float64: of images, or of their pixels."""
        assert self.axis is not None
        values = outputs.astype(np.float64)
        if self.values == "logits":
            values = expit(values) if self.single else softmax(values, self.axis)
        if self.single:
            values = np.concatenate([1 - values, values], self.axis)
        return np.moveaxis(values, self.axis, -1).reshape(-1, self.classes)


def detect(original: Original, size: Size, channels: int, task: Task | None, tail: Tail, indices: int | None) -> Output:
    """Detects the file's output for images of that size, for the given task and tail. `indices` is the number of
    classes for a mask of class indices, None if unknown. Raises BadNetworkFile, with what is expected."""
    if original.output.dtype in NOT_TENSORS:
        raise BadNetworkFile(f"output {original.output} is not a tensor of numbers{_other_outputs(original)}")
    images = noise(size, channels, original.batch)
    values, repeated = original.raw(images), original.raw(images)
    if not np.array_equal(values, repeated, equal_nan=values.dtype.kind == "f"):
        raise BadNetworkFile("the outputs for the same image differ between runs: want the file exported for inference")
    if values.dtype.kind in "iub":
        return _mask(original, values, size, tail, indices)
    likely = likely_task(Tensor(original.output.name, str(values.dtype), values.shape))
    chosen = task or likely
    if chosen is None or values.dtype.kind != "f" or (chosen == "classification" and likely != chosen):
        raise BadNetworkFile(
            f"{_described(original, values, size)}: want a number for each class, [N, classes], or for each "
            "class at each pixel, [N, classes, H, W] or [N, H, W, classes], or the class of each pixel, [N, H, W] of "
            f"integers{_other_outputs(original)}"
        )
    axis = 1 if chosen == "classification" else _class_axis(original, values, size)
    return _of_scores(original.output.name, values, chosen, axis, tail)


def _of_scores(name: str, values: NDArray[Any], task: Task, axis: int, tail: Tail) -> Output:
    single = values.shape[axis] == 1
    # A single number has no sum to check: values within 0..1 may also be logits, if the user says so.
    certain = _within(values) and tail != "sigmoid" if single else _sum_to_one(values, axis)
    usual: Tail = "argmax" if task == "segmentation" else "none"
    logits: Tail = "sigmoid" if single else "argmax" if task == "segmentation" else "softmax"
    fitting = usual if certain else logits
    if tail != fitting:
        what = "probabilities" if certain else "no probabilities"
        raise BadNetworkFile(f"output {name!r} contains {what} for {task}: want --tail {fitting}")
    classes = 2 if single else values.shape[axis]
    return Output(name, task, axis, values.ndim, classes, "probabilities" if certain else "logits", single)


def _within(values: NDArray[Any]) -> bool:
    return bool((values >= 0).all() and (values <= 1).all())


def _sum_to_one(values: NDArray[Any], axis: int) -> bool:
    sums = values.astype(np.float64).sum(axis=axis)
    return bool((values >= 0).all() and np.abs(sums - 1).max() < 1e-2)


def _mask(original: Original, values: NDArray[Any], size: Size, tail: Tail, indices: int | None) -> Output:
    name, shape = original.output.name, values.shape[1:]
    places: dict[tuple[int, ...], int | None] = {size: None, (1, *size): 1, (*size, 1): 3}
    if shape not in places:
        raise BadNetworkFile(
            f"{_described(original, values, size)}: want the class of each pixel, [N, H, W]{_other_outputs(original)}"
        )
    if tail != "none":
        raise BadNetworkFile(f"output {name!r} contains the class of each pixel: want --tail none")
    if indices is None:
        raise BadNetworkFile(f"output {name!r} contains the class of each pixel: of how many? want --labels FILE")
    if not 0 <= values.min() <= values.max() < indices:
        raise BadNetworkFile(
            f"output {name!r} contains classes {values.min()} to {values.max()}, there are {indices} labels"
        )
    return Output(name, "segmentation", places[shape], values.ndim, indices, "indices")


def _class_axis(original: Original, values: NDArray[Any], size: Size) -> int:
    if values.ndim == 4 and values.shape[2:] == size:
        return 1
    if values.ndim == 4 and values.shape[1:3] == size:
        return 3
    raise BadNetworkFile(
        f"{_described(original, values, size)}: want a number for each class at each pixel{_other_outputs(original)}"
    )


def _described(original: Original, values: NDArray[Any], size: Size) -> str:
    images = f"{original.batch} image{'s' if original.batch > 1 else ''} of {size[0]}x{size[1]}"
    return f"output {original.output.name!r} is {values.dtype} {list(values.shape)} for {images}"


def _other_outputs(original: Original) -> str:
    names = [tensor.name for tensor in original.file.outputs if tensor is not original.output]
    return f"; with --output one of {', '.join(names)}" if names else ""
