"""One table out of those of several engines."""

from convoy.service.frontend.routing import merged
from convoy.service.repository import State, Table, Version


def row(version: int, state: State = "READY", reason: str = "", provider: str = "") -> Version:
    return Version(model="digits", version=version, state=state, reason=reason, provider=provider)


def table(*rows: Version, complete: bool = True) -> Table:
    return Table(rows, complete)


def test_the_table_of_one_engine_stays_as_it_is() -> None:
    only = table(row(2), row(1, "UNAVAILABLE", "version 2 serves"))
    assert merged({3: only}) is only


def test_a_version_serves_where_one_engine_has_it() -> None:
    found = merged({0: table(row(1, "LOADING", "loading")), 1: table(row(1))})
    assert found.versions == (row(1),)


def test_a_version_loads_as_long_as_none_has_it_and_one_may() -> None:
    found = merged({0: table(row(1, "UNAVAILABLE", "broken")), 1: table(row(1, "LOADING", "loading"))})
    assert (found.versions[0].state, found.versions[0].reason) == ("LOADING", "device 0: broken")


def test_what_fails_on_one_device_is_said_though_it_serves() -> None:
    found = merged({0: table(row(1)), 5: table(row(1, "UNAVAILABLE", "no memory"))})
    assert (found.versions[0].state, found.versions[0].reason) == ("READY", "device 5: no memory")


def test_what_fails_alike_everywhere_is_said_once() -> None:
    broken = row(1, "UNAVAILABLE", "onnxruntime cannot load it")
    assert merged({0: table(broken), 1: table(broken)}).versions == (broken,)


def test_another_provider_is_said() -> None:
    found = merged({0: table(row(1, provider="CUDA")), 1: table(row(1, provider="CPU"))})
    assert (found.versions[0].provider, found.versions[0].reason) == ("CUDA", "device 1: runs on CPU")


def test_every_version_of_every_engine_is_there_from_the_highest_down() -> None:
    found = merged({0: table(row(1)), 1: table(row(3), row(2))})
    assert [each.version for each in found.versions] == [3, 2, 1]


def test_the_first_look_is_complete_when_all_are() -> None:
    assert not merged({0: table(row(1)), 1: table(complete=False)}).complete
    assert merged({0: table(row(1)), 1: table()}).complete


def test_problem_of_the_repository_is_shown_where_no_engine_can_read_it() -> None:
    broken, other = Table((), False, "no such folder"), Table((), False, "not a folder")
    assert merged({0: broken, 1: other}).problem == "no such folder"
    assert merged({0: broken, 1: table(row(1))}).problem == ""
    assert merged({0: table(row(1)), 1: table()}).problem == ""


def test_state_of_a_version_is_the_best_that_it_has_anywhere() -> None:
    rows = {"READY": row(1), "LOADING": row(1, "LOADING"), "UNAVAILABLE": row(1, "UNAVAILABLE", "broken")}
    for states, best in (
        ("LOADING READY", "READY"),
        ("UNAVAILABLE LOADING", "LOADING"),
        ("LOADING LOADING", "LOADING"),
    ):
        found = merged({device: table(rows[state]) for device, state in enumerate(states.split())})
        assert found.versions[0].state == best
