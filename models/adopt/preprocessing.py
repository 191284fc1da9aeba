"""What published weights expect of pixels: the few ways there are."""

from typing import Literal, NamedTuple

from models.graph import ChannelOrder

Name = Literal["plain", "imagenet", "caffe", "symmetric"]


class Preprocessing(NamedTuple):
    """`mean` and `std` are per channel as images have them, red first, of pixels in 0..1, whatever `order` says."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: ChannelOrder = "RGB"


PREPROCESSING: dict[Name, Preprocessing] = {
    "plain": Preprocessing((0, 0, 0), (1, 1, 1)),  # 0..1
    # Mean and deviation of the pictures of ImageNet.
    "imagenet": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Pixels stay in 0..255, less the mean picture's colour; blue comes first, as OpenCV reads files.
    "caffe": Preprocessing((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, "BGR"),
    "symmetric": Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1..1
}
