"""Versions that could not be loaded: why, and when loading them is tried again."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from convoy.service.repository import Stamp

_RETRY, _LAST_RETRY = 60.0, 600.0  # seconds until what failed is tried again: the first time, and at most

Key = tuple[int, Stamp]  # a version, and the state of its files


class _Retry(NamedTuple):
    """When what failed is tried again, on the loader's clock, and how long it then has waited."""

    at: float
    wait: float


@dataclass(slots=True)
class Failures:
    """Those of one model. One writer: the loader's thread."""

    reasons: dict[Key, str] = field(default_factory=dict)
    _retries: dict[Key, _Retry] = field(default_factory=dict)  # of what failed, until its files change

    def add(self, version: int, stamp: Stamp, reason: str, now: float) -> None:
        """Loading a version failed: it is tried again when its files change, or after a while, ever longer."""
        before = self._retries.get((version, stamp))
        wait = _RETRY if before is None else min(2 * before.wait, _LAST_RETRY)
        self.reasons[version, stamp] = reason
        self._retries[version, stamp] = _Retry(now + wait, wait)

    def forgive(self, present: Collection[Key], now: float) -> None:
        """Forget failures of files that are gone or have changed, and those that are to be tried again."""
        self._retries = {key: retry for key, retry in self._retries.items() if key in present}
        self.reasons = {
            key: reason for key, reason in self.reasons.items() if key in present and now < self._retries[key].at
        }
