"""Preprocessing that published weights expect of pixels."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from convoy.models.graph import ChannelOrder

PixelForm = Literal["plain", "imagenet", "caffe", "symmetric"]


class Preprocessing(NamedTuple):
    """`mean` and `std` are per channel in image order, red first, for pixels in 0..1, regardless of `order`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: "ChannelOrder" = "RGB"


PREPROCESSING: dict[PixelForm, Preprocessing] = {
    "plain": Preprocessing((0, 0, 0), (1, 1, 1)),
    "imagenet": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # ImageNet's mean colour in 0..255; OpenCV, which Caffe read files with, has blue first.
    "caffe": Preprocessing((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, "BGR"),
    "symmetric": Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
MEANING: dict[PixelForm, str] = {
    "plain": "0..1",
    "imagenet": "0..1, less the mean of ImageNet's pictures, over their deviation",
    "caffe": "0..255, blue first, less the mean colour of ImageNet's pictures",
    "symmetric": "-1..1",
}
