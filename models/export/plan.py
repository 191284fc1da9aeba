"""What is wanted of a network in fewer bits."""

import msgspec

from convoy.service.metadata import Calibration


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`max_drop` is how much of its leading score, top1 or mean_iou, it may lose."""

    max_drop: float = 0.01
    calibration: Calibration = "percentile"
    calibration_images: int = 128


DEFAULT = Plan()
