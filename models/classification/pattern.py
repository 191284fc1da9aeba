"""Networks of the classic pattern, built from its text (Stanford's course CS231n, notes on convolutional networks)."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from convoy.models.errors import BadTraining
from convoy.models.grammar import DEFAULT, Layer, parse, refuse

MAX_WIDTH = 65_536


class Pattern(nn.Module):
    """Logits of the layers that `pattern` names (models/grammar.py has the grammar).

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    CONV is 3x3 and keeps the size; POOL takes the largest of every 2x2, so halves it, and passes a last odd row or
    column over. `POOL?` is left out where a side is 1.

    widths  the maps of the convolutions, a number for all of them up to a POOL: "32,64,128"; those that are missing
            are twice the one before, at most 512; the first is 32
    dense   the units of the FC layers but the last, which has the classes: "256,128"; those that are missing are as
            the one before; the first is 128

    Raises BadTraining for a pattern that does not hold, with the column, and for bad numbers.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        size: tuple[int, int] = (32, 32),
        pattern: str = DEFAULT,
        widths: str = "",
        dense: str = "",
    ) -> None:
        super().__init__()
        layers = parse(pattern)
        stages = sum(_opens_stage(layers, index) for index in range(len(layers)))
        hidden = sum(layer.kind == "FC" for layer in layers) - 1
        maps = iter(_numbers("widths", widths, stages, default=32, factor=2, most=512))
        units = iter([*_numbers("dense", dense, hidden, default=128), classes])
        self.layers = nn.Sequential()
        counts: Counter[str] = Counter()
        width, height, columns = channels, *size
        for index, layer in enumerate(layers):
            counts[layer.kind] += 1
            name = f"{layer.kind.lower()}{counts[layer.kind]}"
            match layer.kind:
                case "CONV":
                    width, before = next(maps) if _opens_stage(layers, index) else width, width
                    self.layers.add_module(name, nn.Conv2d(before, width, 3, padding=1))
                case "POOL":
                    if min(height, columns) > 1:
                        self.layers.add_module(name, nn.MaxPool2d(2))
                        height, columns = height // 2, columns // 2
                    elif not layer.optional:
                        refuse(layer.column, f"{name} gets {height}x{columns} pixels, want at least 2x2")
                case "FC":
                    if counts["FC"] == 1:
                        self.layers.add_module("flatten", nn.Flatten())
                        width *= height * columns
                    width, before = next(units), width
                    self.layers.add_module(name, nn.Linear(before, width))
                case "RELU":
                    self.layers.add_module(name, nn.ReLU(inplace=True))
        _initialise(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def _opens_stage(layers: Sequence[Layer], index: int) -> bool:
    # A convolution behind a rectifier goes on with the maps of the convolution before that.
    return layers[index].kind == "CONV" and (index == 0 or layers[index - 1].kind != "RELU")


def _numbers(name: str, text: str, count: int, default: int, factor: int = 1, most: int = MAX_WIDTH) -> list[int]:
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isdecimal() and len(word) <= 5 and 1 <= int(word) <= MAX_WIDTH for word in words):
        raise BadTraining(f"{name} = {text!r}, want numbers from 1 to {MAX_WIDTH} with commas between")
    if len(words) > count:
        raise BadTraining(f"{name} = {text!r}: {len(words)} numbers, the pattern has a place for {count}")
    numbers = [int(word) for word in words]
    while len(numbers) < count:
        numbers.append(max(numbers[-1], min(factor * numbers[-1], most)) if numbers else default)
    return numbers


def _initialise(layers: nn.Sequential) -> None:
    # For rectifiers (He et al., arXiv 1502.01852): with PyTorch's own start a long pattern does not begin to learn.
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
