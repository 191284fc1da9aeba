"""Follows the models of a server: by a watch where there can be one, else by polling."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from watchfiles import awatch

from convoy.service.sources import Source

logger = logging.getLogger(__name__)


async def follow(source: Source, refresh: Callable[[], Awaitable[None]], poll_seconds: float) -> NoReturn:
    """Calls `refresh` at once, whenever a file of the source changes, and every `poll_seconds`."""
    await refresh()
    reported = False
    while True:
        identities = _identities(source)
        # Of a file by itself there may be nothing to watch yet. A repository must be there, or that is logged.
        paths = [path for path in source.watched() if path == source.root or _identity(path)]
        if not paths:
            await asyncio.sleep(poll_seconds)
            await refresh()
            continue
        changes = awatch(*paths, rust_timeout=round(poll_seconds * 1000), yield_on_timeout=True, debounce=200, step=50)
        try:
            # A path may be a symbolic link, or a file that is replaced: then the new target must be watched.
            while _identities(source) == identities:
                await anext(changes)
                reported = False
                await refresh()
        except (OSError, RuntimeError) as error:  # watchfiles raises RuntimeError, as without inotify instances
            if not reported:
                reason = getattr(error, "strerror", None) or str(error)
                logger.error("model repository cannot be watched: %s; polling it instead", reason)
            reported = True
            await asyncio.sleep(poll_seconds)
        finally:
            await changes.aclose()
        await refresh()


def _identities(source: Source) -> list[tuple[int, int] | None]:
    """Returns the device and inode that each path leads to now, or None if it leads nowhere."""
    return [_identity(path) for path in source.watched()]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
