"""A front end's view of the models: the engine's table, and the versions that its own requests refer to."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convoy.service.errors import BadRequest, ModelUnavailable, UnknownModel, listed
from convoy.service.metadata import Task
from convoy.service.repository import Table, Version


class Catalogue:
    """The newest table and the requests in flight. One writer: the front end's loop.

    A version that no longer serves is released once the last request that refers to it has ended.
    """

    def __init__(self, release: Callable[[str, int], None]) -> None:
        self.table = Table()
        self._release = release
        self._users: Counter[tuple[str, int]] = Counter()
        self._by_task: dict[tuple[str, int, Task], Version] = {}  # answers of `for_task` for this table
        self._leaving: set[tuple[str, int]] = set()

    def update(self, table: Table) -> None:
        """Accepts a new table. While a restarted engine loads, the previous one stays: its requests wait."""
        if self.table.complete and not table.complete and not table.problem:
            return
        before, after = _ready(self.table), _ready(table)
        self.table = table
        self._by_task.clear()
        self._leaving = (self._leaving | before) - after
        for version in list(self._leaving):
            self._release_if_unused(version)

    @contextmanager
    def using(self, row: Version) -> Iterator[None]:
        """Counts a request that refers to `row` for as long as it lasts."""
        self.add_users(row, 1)
        try:
            yield
        finally:
            self.add_users(row, -1)

    def add_users(self, row: Version, change: int) -> None:
        """Adds `change` to the number of requests that refer to `row`."""
        version = (row.model, row.version)
        self._users[version] += change
        if change < 0:
            self._release_if_unused(version)

    def users(self, row: Version) -> int:
        """Returns the number of requests in flight that refer to `row`."""
        return self._users[row.model, row.version]

    def for_task(self, model: str, version: int, task: Task, sees: Callable[[str], bool] = lambda _: True) -> Version:
        """Returns the version that serves `model`, which must be for `task` and accept images; an empty name stands for
        the only such model. `sees`: whether the caller may know that a model exists.

        Raises UnknownModel, ModelUnavailable, and BadRequest if the model is for something else.
        """
        known = self._by_task.get((model, version, task))
        if known is not None:
            return known
        if version < 0:
            raise BadRequest(f"version is {version}, want 0 or more")
        row = self.table.serving(model or self._only(task, sees), version, sees)
        if row.document is None:
            raise BadRequest(f"model {row.model!r} has no metadata: send tensors over ModelInfer")
        if row.document.task != task:
            raise BadRequest(f"model {row.model!r} is for {row.document.task}, want {task}")
        if row.document.input is None:
            raise BadRequest(f"model {row.model!r} accepts no images, but a {row.document.takes}, over ModelInfer")
        self._by_task[model, version, task] = row
        return row

    def _only(self, task: Task, sees: Callable[[str], bool]) -> str:
        documents = [(row.model, row.document) for row in self.table.versions if row.document is not None]
        names = {model for model, document in documents if document.task == task and document.input is not None}
        loading = not self.table.complete or any(row.state == "LOADING" for row in self.table.versions)
        if not names and loading:
            raise ModelUnavailable("models are loading", retry_after=1.0)
        if not names:
            raise UnknownModel(f"model is not named, and no model for {task} is served")
        if len(names) > 1:
            known = listed(sorted(filter(sees, names)))
            which = f"name one of {known}" if known else "name one"
            raise UnknownModel(f"model is not named, and {len(names)} models for {task} are served: {which}")
        return names.pop()

    def _release_if_unused(self, version: tuple[str, int]) -> None:
        if version in self._leaving and not self._users[version]:
            self._leaving.discard(version)
            del self._users[version]
            self._release(*version)


def _ready(table: Table) -> set[tuple[str, int]]:
    return {(row.model, row.version) for row in table.versions if row.state == "READY"}
