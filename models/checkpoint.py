"""What a checkpoint says about itself, so that the network can be built again from the file alone."""

from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from convoy.models import paths, registry
from convoy.models.data.dataset import Split, SplitName
from convoy.models.data.registry import split_of
from convoy.models.errors import BadCheckpoint, BadTraining
from convoy.models.graph import ChannelOrder, Pixels, Values
from convoy.models.registry import Argument
from convoy.service.metadata import InputSpec, Task, TensorInput, image_tensor

KEY = "convoy"
EPOCHS = "convoy_epochs"  # that are done; what Lightning notes does not tell the middle of one from its end
PREFIX = "network."  # of the network's weights in the checkpoint's state


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """Plain values only: a checkpoint is read with `torch.load(weights_only=True)`.

    What it takes is as in `service.metadata.Document`. `mean` and `std` are per channel as images have them, of pixels
    in 0..1, or of the numbers of a tensor (bytes in 0..1, too); the network takes an image's channels in
    `channel_order`. `data` is empty where the weights were not trained here. `commit` is that of the source tree, empty
    where there is none.
    """

    schema_version: Literal[1] = 1
    architecture: str
    arguments: dict[str, Argument]
    task: Task
    input: InputSpec | None = None
    tensor: TensorInput | None = None
    data: str
    labels: list[str]
    palette: list[tuple[int, int, int]] | None
    mean: list[float]
    std: list[float]
    channel_order: ChannelOrder = "RGB"
    commit: str = ""

    def build(self) -> nn.Module:
        """A fresh network."""
        return registry.build(
            self.architecture, self.takes.channels, len(self.labels), self.arguments, registry.sides(self.spec)
        )

    @property
    def spec(self) -> InputSpec | TensorInput:
        """How an image reaches the input, or what goes there instead."""
        spec = self.input if self.tensor is None else self.tensor
        assert spec is not None
        return spec

    @property
    def takes(self) -> TensorInput:
        """The tensor at the input, also where images are brought to it."""
        spec = self.spec
        return image_tensor(spec) if isinstance(spec, InputSpec) else spec

    def held_out(self) -> Split:
        """The test split of the data it was trained on. Raises BadTraining, BadData where it is not there as it was."""
        return self.split("test")

    def split(self, name: SplitName) -> Split:
        """A split of the data it was trained on. Raises BadTraining, BadData where it is not there as it was."""
        colour = None if self.input is None else self.input.colour
        return split_of(self.data, name, self.task, colour, self.labels)

    def normalisation(self) -> Pixels | Values:
        """What stands before the network: what is served in, what the network takes out."""
        if self.tensor is not None:
            return Values(self.mean, self.std, self.tensor)
        return Pixels(self.mean, self.std, self.channel_order)


def put(description: Description, checkpoint: dict[str, Any]) -> None:
    """Lay the description into a checkpoint that is about to be written."""
    checkpoint[KEY] = msgspec.to_builtins(description)


def save(path: Path, description: Description, network: nn.Module) -> None:
    """Write a checkpoint of weights that no run of `convoy train` made: `load` reads it, no run goes on from it."""
    saved: dict[str, Any] = {
        "state_dict": {PREFIX + name: value for name, value in network.state_dict().items()},
        "epoch": -1,
    }
    put(description, saved)
    torch.save(saved, path)


def load(path: Path) -> tuple[Description, nn.Module]:
    """The description in a checkpoint and its network, in eval mode, on the CPU. Raises BadCheckpoint."""
    checkpoint = content(path)
    try:
        description = msgspec.convert(checkpoint[KEY], Description)
        network = description.build()
        weights = checkpoint["state_dict"].items()
        network.load_state_dict(
            {name.removeprefix(PREFIX): value for name, value in weights if name.startswith(PREFIX)}
        )
    except (KeyError, TypeError, RuntimeError, AttributeError, BadTraining, msgspec.ValidationError) as error:
        raise BadCheckpoint(f"{path} is not a checkpoint of this version of `convoy train`: {_line(error)}") from None
    return description, network.eval()


def epochs(path: Path) -> int:
    """How many epochs of its run a checkpoint has behind it. Raises BadCheckpoint."""
    found = content(path)
    done: int = found.get(EPOCHS, found["epoch"] + 1)  # Lightning counts from 0
    return done


def steps(path: Path) -> int:
    """How many steps of its run a checkpoint has behind it. Raises BadCheckpoint."""
    taken: int = content(path).get("global_step", 0)
    return taken


def content(path: Path) -> dict[str, Any]:
    """All that is in a checkpoint, on the CPU. Raises BadCheckpoint."""
    paths.check_checkpoint(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is no checkpoint makes the unpickler raise
        # Its words are about unpickling, and say nothing to whoever named the wrong file.
        raise BadCheckpoint(f"{path} is not a checkpoint, want a .ckpt file that `convoy train` wrote") from error
    if not isinstance(found, dict):
        raise BadCheckpoint(f"{path} holds a {type(found).__name__}, want a checkpoint of `convoy train`")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
