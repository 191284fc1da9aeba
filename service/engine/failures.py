"""Versions that failed to load: the reasons, and when to retry."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from convoy.service.repository import Stamp

_RETRY, _LAST_RETRY = 60.0, 600.0  # seconds before a retry: the first one, and at most

Key = tuple[int, Stamp]  # a version, and the state of its files


class _Retry(NamedTuple):
    """The time of the next retry, on the loader's clock, and the wait before it, in seconds."""

    at: float
    wait: float


@dataclass(slots=True)
class Failures:
    """Load failures of one model. One writer: the loader's thread."""

    reasons: dict[Key, str] = field(default_factory=dict)
    _retries: dict[Key, _Retry] = field(default_factory=dict)  # of failed versions, until their files change

    def add(self, version: int, stamp: Stamp, reason: str, now: float) -> None:
        """Records a load failure. The version is retried when its files change, or after a growing wait."""
        before = self._retries.get((version, stamp))
        wait = _RETRY if before is None else min(2 * before.wait, _LAST_RETRY)
        self.reasons[version, stamp] = reason
        self._retries[version, stamp] = _Retry(now + wait, wait)

    def forgive(self, present: Collection[Key], now: float) -> None:
        """Removes failures whose files are gone or have changed, and those that are due for a retry."""
        self._retries = {key: retry for key, retry in self._retries.items() if key in present}
        self.reasons = {
            key: reason for key, reason in self.reasons.items() if key in present and now < self._retries[key].at
        }
