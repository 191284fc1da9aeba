"""Reads Keras weight files: `.weights.h5`, and the legacy `.h5`."""

import re
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from convoy.models.errors import BadWeights

CONVOLUTION, DEPTHWISE, SEPARABLE = "conv2d", "depthwise_conv2d", "separable_conv2d"
DENSE, NORM = "dense", "batch_normalization"


class Layer(NamedTuple):
    """One layer, by its name in Keras. `weights` are in Keras' order: kernel, bias; both kernels of a separable
    convolution; gamma, beta, moving mean, moving variance, where gamma may be missing."""

    name: str
    weights: list[NDArray[np.float32]]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(array.shape) for array in self.weights]


Layers = dict[str, deque[Layer]]


def read(path: Path) -> Layers:
    """Returns the layers with weights, by kind (the layer's class in snake case), each kind in the order of Keras'
    `model.layers`.

    A legacy file does not contain the classes, but the ranks of the arrays determine them, except that depthwise and
    plain convolutions look the same: both kinds then share one queue. Raises BadWeights.
    """
    try:
        with h5py.File(path) as file:
            if "layers" in file:
                return _by_class(file["layers"], file.filename)
            legacy = file.get("model_weights", file)  # a whole saved model, or its weights only
            if names := _texts(legacy, "layer_names"):
                return _by_rank(legacy, names, file.filename)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadWeights(f"{path} cannot be read as HDF5: {error}") from None
    raise BadWeights(f"{path} is HDF5 without layers of Keras, want what `model.save_weights` wrote")


def _by_class(layers: Any, path: str) -> Layers:
    numbered = []
    for key in layers:
        kind, _, number = key.rpartition("_") if re.search(r"_\d+$", key) else (key, "", "0")
        numbered.append((kind, int(number), key))
    layers_by_kind: Layers = {}
    for kind, _, key in sorted(numbered):
        if "layers" in layers[key]:
            raise BadWeights(f"layer {key!r} of the file is a nested network, want one flat network")
        variables = layers[key].get("vars", {})
        if len(variables):
            arrays = [_array(variables[index], path) for index in sorted(variables, key=int)]
            layers_by_kind.setdefault(kind, deque()).append(Layer(str(variables.attrs.get("name", key)), arrays))
    return layers_by_kind


def _by_rank(group: Any, names: list[str], path: str) -> Layers:
    layers_by_kind: Layers = {}
    for name in names:
        arrays = [_array(group[name][weight], path) for weight in _texts(group[name], "weight_names")]
        if arrays:
            layers_by_kind.setdefault(_kind(name, arrays), deque()).append(Layer(name, arrays))
    layers_by_kind[DEPTHWISE] = layers_by_kind.setdefault(CONVOLUTION, deque())
    return layers_by_kind


def _kind(name: str, arrays: list[NDArray[np.float32]]) -> str:
    match [array.ndim for array in arrays]:
        case [4] | [4, 1]:
            return CONVOLUTION
        case [4, 4] | [4, 4, 1]:
            return SEPARABLE
        case [2] | [2, 1]:
            return DENSE
        case [1, 1, 1] | [1, 1, 1, 1]:
            return NORM
    shapes = ", ".join(str(array.shape) for array in arrays[:4])
    raise BadWeights(
        f"layer {name!r} of the file has {len(arrays)} arrays ({shapes}{', ..' if len(arrays) > 4 else ''}), "
        "want those of one convolution, dense or batch normalisation layer"
    )


def _texts(group: Any, name: str) -> list[str]:
    # HDF5 limits the size of attributes, so a longer list is written as name0, name1, ..
    pieces = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(group.attrs[f"{name}{len(pieces)}"])
    return [text.decode() if isinstance(text, bytes) else str(text) for piece in pieces for text in piece]


def _array(dataset: Any, path: str) -> NDArray[np.float32]:
    # HDF5 can reference other files of this machine; weights have no need to.
    if dataset.external or dataset.is_virtual or dataset.file.filename != path:
        raise BadWeights(f"array {dataset.name!r} of the file is in another file, want one complete file")
    return np.asarray(dataset, np.float32)
