"""Networks built from a text pattern (Stanford's course CS231n, notes on convolutional networks)."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from convoy.models.errors import BadTraining
from convoy.models.grammar import DEFAULT, Layer, parse, refuse

MAX_WIDTH = 65_536


class Pattern(nn.Module):
    """The layers that `pattern` names (see models/grammar.py for the grammar).

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    CONV is 3x3 and keeps the size. POOL is 2x2 max pooling, which halves the size and drops the last row or column of
    an odd side. `POOL?` is omitted if a side is 1.

    widths  feature maps of the convolutions, one number for all of them up to a POOL: "32,64,128"; missing ones are
            twice the one before, at most 512; the first defaults to 32
    dense   units of the FC layers except the last, which has the classes: "256,128"; missing ones equal the one before;
            the first defaults to 128

    Raises BadTraining for an invalid pattern, with the column, and for invalid numbers.
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
    # A convolution after a ReLU keeps the number of maps of the convolution before.
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
    # Initialisation for ReLUs (He et al., arXiv 1502.01852): with PyTorch's default, a long pattern does not learn.
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
