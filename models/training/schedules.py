"""Learning rate schedules: the share of the peak rate for each step."""

import math
from typing import get_args

from convoy.models.settings import Schedule

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
# Default share of the steps in which the rate rises.
WARM_UP: dict[Schedule, float] = {"cosine": 0.1, "one-cycle": 0.3, "steps": 0.05, "constant": 0.0}

LOWEST = 1e-3  # share at the end of a cosine; above 0, so that the last step still trains
START, END = 1 / 25, 1e-4 / 25  # shares at the start and end of one cycle
MOMENTUM = (0.95, 0.85)  # at one cycle's lowest and highest rate
DROPS, DROP = (0.5, 0.75), 0.1  # after each of these shares of the steps, the rate drops to a tenth


def share_of_rate(schedule: Schedule, step: int, steps: int, warm_up: float | None = None) -> float:
    """Returns the share of the learning rate, above 0 and at most 1, for step 0 .. `steps` - 1.

    cosine     a linear rise, then half a cosine down (Loshchilov and Hutter, arXiv 1608.03983, section 3, one period)
    one-cycle  up from a 25th and down to almost nothing, both along half a cosine (Smith and Topin, arXiv 1708.07120,
               section 2, with cosines instead of its lines, as is usual now)
    steps      a linear rise, then a tenth after half of the steps and again after three quarters (He et al., arXiv
               1512.03385, section 4.2)
    constant   a linear rise, then the peak rate

    `warm_up` is the share of the steps in which the rate rises; None: the schedule's default, WARM_UP.
    """
    rise = _rise(schedule, steps, warm_up)
    if step < rise:
        return _wave(START, 1.0, step / rise) if schedule == "one-cycle" else (step + 1) / rise
    fallen = (step - rise) / max(1, steps - rise)
    match schedule:
        case "cosine":
            return max(LOWEST, _wave(1.0, 0.0, fallen))
        case "one-cycle":
            return _wave(1.0, END, fallen)
        case "steps":
            return DROP ** sum(step >= drop * steps for drop in DROPS)
        case "constant":
            return 1.0


def momentum(schedule: Schedule, step: int, steps: int, warm_up: float | None = None) -> float | None:
    """Returns the momentum of a step, which one cycle lowers while the rate is high; None: the optimizer's."""
    if schedule != "one-cycle":
        return None
    rise = _rise(schedule, steps, warm_up)
    slow, fast = MOMENTUM
    if step < rise:
        return _wave(slow, fast, step / rise)
    return _wave(fast, slow, (step - rise) / max(1, steps - rise))


def _rise(schedule: Schedule, steps: int, warm_up: float | None) -> int:
    share = WARM_UP[schedule] if warm_up is None else warm_up
    return max(1, round(share * steps)) if share > 0 else 0


def _wave(start: float, end: float, share: float) -> float:
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, share)))
