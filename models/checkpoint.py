"""The description inside a checkpoint, from which the network is rebuilt without any other file."""

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
EPOCHS = "convoy_epochs"  # epochs completed; Lightning's count is the same in the middle of an epoch and at its end
PREFIX = "network."  # prefix of the network's weights in the checkpoint's state


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a checkpoint's network, in plain values that `torch.load(weights_only=True)` can read.

    `input` and `tensor` are as in `service.metadata.Document`. `mean` and `std` are per channel, in the image's channel
    order, of pixels scaled to 0..1, or of a tensor's values (bytes are scaled to 0..1, too). The network expects
    channels in `channel_order`. `data` is empty if the weights were not trained here. `commit` is the commit of the
    source tree, empty if there is none.
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
        """Returns a network with fresh weights."""
        return registry.build(
            self.architecture, self.as_tensor.channels, len(self.labels), self.arguments, registry.sides(self.spec)
        )

    @property
    def spec(self) -> InputSpec | TensorInput:
        """The input specification: of an image, or of a tensor."""
        spec = self.input if self.tensor is None else self.tensor
        assert spec is not None
        return spec

    @property
    def as_tensor(self) -> TensorInput:
        """The input as a tensor, for images as well."""
        spec = self.spec
        return image_tensor(spec) if isinstance(spec, InputSpec) else spec

    def held_out(self) -> Split:
        """Returns the test split of its training data. Raises BadTraining or BadData if that is missing or changed."""
        return self.split("test")

    def split(self, name: SplitName, strict: bool = False) -> Split:
        """Returns a split of its training data. Raises BadTraining or BadData if that is missing or changed; `strict`
        is as in `data_set`."""
        colour = None if self.input is None else self.input.colour
        return split_of(self.data, name, self.task, colour, self.labels, strict)

    def normalisation(self) -> Pixels | Values:
        """Returns the module that converts a served input to the network's input."""
        if self.tensor is not None:
            return Values(self.mean, self.std, self.tensor)
        return Pixels(self.mean, self.std, self.channel_order)


def put(description: Description, checkpoint: dict[str, Any]) -> None:
    """Adds the description to a checkpoint that is about to be written."""
    checkpoint[KEY] = msgspec.to_builtins(description)


def save(path: Path, description: Description, network: nn.Module) -> None:
    """Writes a checkpoint of weights that `convoy train` did not produce. `load` reads it; it cannot be resumed."""
    saved: dict[str, Any] = {
        "state_dict": {PREFIX + name: value for name, value in network.state_dict().items()},
        "epoch": -1,
    }
    put(description, saved)
    torch.save(saved, path)


def load(path: Path) -> tuple[Description, nn.Module]:
    """Returns the description in a checkpoint and its network, in eval mode, on the CPU. Raises BadCheckpoint."""
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
    """Returns the number of epochs a checkpoint's run had completed. Raises BadCheckpoint."""
    saved = content(path)
    completed: int = saved.get(EPOCHS, saved["epoch"] + 1)  # Lightning counts from 0
    return completed


def steps(path: Path) -> int:
    """Returns the number of steps a checkpoint's run had completed. Raises BadCheckpoint."""
    completed: int = content(path).get("global_step", 0)
    return completed


def content(path: Path) -> dict[str, Any]:
    """Returns the whole content of a checkpoint, on the CPU. Raises BadCheckpoint."""
    paths.check_checkpoint(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types for a file that is not a checkpoint
        # The unpickler's message does not help a user who named the wrong file.
        raise BadCheckpoint(f"{path} is not a checkpoint, want a .ckpt file that `convoy train` wrote") from error
    if not isinstance(saved, dict):
        raise BadCheckpoint(f"{path} contains a {type(saved).__name__}, want a checkpoint of `convoy train`")
    return saved


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
