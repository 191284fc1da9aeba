"""AlexNet (Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012)."""

from collections import OrderedDict

from torch import Tensor, nn

from convoy.models.blocks import output_size

# Section 5: these biases start at 1, so that their ReLUs have positive inputs at first; the others start at 0.
BIASED = ("conv2", "conv4", "conv5", "fc6", "fc7")


class AlexNet(nn.Module):
    """Five convolutions and three dense layers, with the paper's two towers as groups.

    (N, channels, H, W) float32, (H, W) = `size` -> (N, classes)

    The paper splits the maps over two GPUs; the halves meet in conv3 and in the dense layers only. It states an input
    of 224x224, but an 11x11 window with stride 4 has the 55 positions that the later layers need in 227 pixels; in 224
    only with a padding that the paper does not mention. It also states 253,440 neurons for conv1, which is 55 x 48 x
    96; 55 x 55 x 96 is 290,400. The numbers of all other layers match.

    Response normalisation covers the maps of both towers, as in the paper's formula.
    """

    def __init__(self, channels: int = 3, classes: int = 1000, size: tuple[int, int] = (227, 227)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 96, 11, stride=4),  # (N, 96, 55, 55)
                relu1=nn.ReLU(inplace=True),
                norm1=_response_norm(),
                pool1=nn.MaxPool2d(3, stride=2),  # (N, 96, 27, 27): the windows overlap
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),  # (N, 256, 27, 27)
                relu2=nn.ReLU(inplace=True),
                norm2=_response_norm(),
                pool2=nn.MaxPool2d(3, stride=2),  # (N, 256, 13, 13)
                conv3=nn.Conv2d(256, 384, 3, padding=1),  # (N, 384, 13, 13)
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),  # (N, 256, 13, 13)
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, stride=2),  # (N, 256, 6, 6)
            )
        )
        height, width = output_size(self.features, size)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(256 * height * width, 4096),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(0.5),
                fc7=nn.Linear(4096, 4096),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(0.5),
                fc8=nn.Linear(4096, classes),
            )
        )
        for name, layer in (*self.features.named_children(), *self.classifier.named_children()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.get_parameter("bias"), 1.0 if name in BIASED else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _response_norm() -> nn.LocalResponseNorm:
    # Section 3.3: x / (2 + 1e-4 sum x^2)^0.75 over five maps. PyTorch divides its alpha by the number of maps.
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
