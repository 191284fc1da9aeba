"""Settings of gradient ascent."""

from typing import Literal

import msgspec

Space = Literal["pixels", "frequency"]


class Climb(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` is the size of a step: its root mean square over the picture's pixels, as a share of the range from black
    to white. `jitter` is the maximum random cyclic shift of the picture before each step, in pixels. `blur` is the
    standard deviation in pixels of the Gaussian that smooths it every fourth step; 0 is none. `coloured` is as in
    `Subject`."""

    steps: int
    rate: float
    jitter: int
    blur: float
    space: Space
    coloured: bool = True
