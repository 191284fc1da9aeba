"""Two convolutions with pooling and a dense classifier: the classic digits network, a simplified LeNet-5.

Layers and widths are those of Caffe's example for handwritten digits (Jia et al., arXiv 1408.5093).
"""

from collections import OrderedDict

from torch import Tensor, nn

from convoy.models.blocks import output_size


class ConvPool(nn.Module):
    """Two convolutions and two dense layers; 431,080 parameters for 28x28 grey pixels and ten classes.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    Compared with LeNet-5 (1998): max pooling instead of trained means, ReLU instead of tanh, and full connections
    between maps. Departure from the example: the convolutions have ReLUs too.
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
