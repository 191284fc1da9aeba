"""How the ascent to a picture goes."""

from typing import Literal

import msgspec

Space = Literal["pixels", "frequency"]


class Climb(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` is how far a step changes a picture: the root mean square over its pixels, as a share of the whole range
    from black to white. `jitter` is by how many pixels at most the picture is shifted, at random, before each step, in
    a ring. `blur` is the standard deviation in pixels of the Gaussian that smooths it every fourth step. 0 is none.
    `coloured` is as a `Subject` has it.
    """

    steps: int
    rate: float
    jitter: int
    blur: float
    space: Space
    coloured: bool = True
