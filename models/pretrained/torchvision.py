"""torchvision weights, a state dict in a `.pth` file, copied by name."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from convoy.models.errors import BadWeights

# Maps a tensor's name in the file to its name in our network; None if serving does not use it.
Rename = Callable[[str, nn.Module], str | None]
State = dict[str, Tensor]

COUNTER = "num_batches_tracked"  # does not affect the output, and older files lack it


def read(path: Path) -> State:
    """Reads the tensors in a file by name, without running any code in it. Raises BadWeights."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises many types for an invalid file, with messages about unpickling
        raise BadWeights(f"{path} is {_WANTED}") from None
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise BadWeights(f"{path} is {_WANTED}")
    return {name: value for name, value in content.items() if not name.endswith(COUNTER)}


def classes(state: State, head: str) -> int:
    """Returns the number of classes of the file's last layer, `head`. Raises BadWeights if it is missing."""
    name = f"{head}.weight"
    if name not in state:
        raise BadWeights(f"the file has no tensor {name!r}, want a whole network with its classifier")
    return len(state[name])


def copy(state: State, network: nn.Module, rename: Rename) -> None:
    """Copies every tensor to its place. Raises BadWeights if one is missing, left over or has another shape."""
    missing = {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTER)}
    for theirs, value in state.items():
        ours = rename(theirs, network)
        if ours is None:
            continue
        if ours not in missing:
            raise BadWeights(f"tensor {theirs!r} of the file, {_shape(value)}, has no place in this network")
        target = missing.pop(ours)
        if target.shape != value.shape:
            raise BadWeights(f"tensor {theirs!r} of the file is {_shape(value)}, want {_shape(target)} for {ours}")
        target.copy_(value)
    for name, value in missing.items():
        raise BadWeights(f"the file has no tensor for {name}, want one of {_shape(value)}")


_WANTED = (
    "neither HDF5 nor a state dict: want a .weights.h5 or .h5 file of Keras "
    "(of a .keras file, what `model.save_weights` writes), or a .pth file of tensors by name"
)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
