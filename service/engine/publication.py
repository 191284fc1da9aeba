"""What front ends know of an engine's versions: the table that each receives, and what each still refers to."""

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor

from convoy.service import metrics
from convoy.service.engine.model_loader import Loader
from convoy.service.ipc.channel import TableFile, Wire
from convoy.service.ipc.slots import memory_file
from convoy.service.repository import Table, encode_table


class Publication:
    """Sends every table to all front ends, and drops a retired version once none refers to it. One writer: the engine's
    loop.

    wires    the connected front ends, by number; maintained by the engine
    loading  the loader's thread, which owns `loader.versions`
    on_drop  called with a version that has been dropped
    """

    def __init__(
        self,
        loader: Loader,
        loading: ThreadPoolExecutor,
        wires: Mapping[int, Wire],
        keep_metrics_seconds: float,
        on_drop: Callable[[str, int], None],
    ) -> None:
        self._loader = loader
        self._loading = loading
        self._wires = wires
        self._keep_metrics_seconds = keep_metrics_seconds
        self._on_drop = on_drop
        self._loop = asyncio.get_running_loop()
        self._table = Table()
        # Retired versions, and the front ends that may refer to each. A version that is not retired has no set.
        self.unreleased: dict[tuple[str, int], set[Hashable]] = {}

    def publish(self, table: Table) -> None:
        """Sends a new table to all front ends."""
        self._table = table
        for model, version in list(self._loader.versions):
            if self._loader.is_retired(model, version):
                self.unreleased.setdefault((model, version), set(self._wires))
                self._drop_if_released(model, version)
            else:
                self.unreleased.pop((model, version), None)
        for wire in list(self._wires.values()):  # a copy: a failed send removes its front end
            self.send(wire)

    def send(self, wire: Wire) -> None:
        """Sends the current table to one front end."""
        data = encode_table(self._table)
        descriptor = memory_file(len(data))
        os.pwrite(descriptor, data, 0)
        wire.send([TableFile(len(data))], [descriptor])
        os.close(descriptor)

    def release(self, number: int, model: str, version: int) -> None:
        """Records that a front end no longer refers to a version."""
        self.unreleased.get((model, version), set()).discard(number)
        self._drop_if_released(model, version)

    def forget(self, number: int) -> None:
        """Records that a front end has disconnected."""
        for model, version in list(self.unreleased):
            self.release(number, model, version)

    def _drop_if_released(self, model: str, version: int) -> None:
        # The empty set stays until the loader's thread has dropped the version.
        if self.unreleased.get((model, version)) == set():
            dropping = self._loop.run_in_executor(self._loading, self._loader.drop, model, version)
            dropping.add_done_callback(lambda _: self._dropped(model, version))

    def _dropped(self, model: str, version: int) -> None:
        if (model, version) in self._loader.versions or (model, version) not in self.unreleased:
            return  # it serves again, or is already dropped
        del self.unreleased[model, version]
        self._on_drop(model, version)
        self._loop.call_later(self._keep_metrics_seconds, self._forget_metrics, model, version)

    def _forget_metrics(self, model: str, version: int) -> None:
        if (model, version) not in self._loader.versions:
            metrics.forget_version(model, version)
