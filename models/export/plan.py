"""Settings of an export in reduced precision."""

import msgspec

from convoy.service.metadata import Calibration


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`max_drop` is the largest acceptable loss of the main score, top1 or mean_iou."""

    max_drop: float = 0.01
    calibration: Calibration = "percentile"
    calibration_images: int = 128


DEFAULT = Plan()
