"""Two convolutions with pooling and a dense classifier: the classic digits network, LeNet-5 grown plain.

Layers and widths are those of the example for handwritten digits that came with Caffe (Jia et al., arXiv 1408.5093).
"""

from collections import OrderedDict

from torch import Tensor, nn

from convoy.models.arithmetic import output_size


class ConvPool(nn.Module):
    """Logits for one image; 431,080 parameters with 28x28 grey pixels and ten classes.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    Against LeNet-5 (1998): maxima in place of trained means, rectifiers in place of tangents, and every map sees every
    map. Departure from the example: the convolutions have rectifiers too.
    """

    def __init__(self, channels: int = 1, classes: int = 10, size: tuple[int, int] = (28, 28)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 20, 5),  # (N, 20, 24, 24)
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),  # (N, 20, 12, 12)
                conv2=nn.Conv2d(20, 50, 5),  # (N, 50, 8, 8)
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),  # (N, 50, 4, 4)
            )
        )
        height, width = output_size(self.features, size)
        self.dense = nn.Linear(50 * height * width, 500)
        self.output = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        logits: Tensor = self.output(self.dense(x).relu())
        return logits
