"""One table of versions out of those that several engines have."""

from collections.abc import Iterator, Mapping

import msgspec

from convoy.service.repository import Table, Version


def merged(tables: Mapping[int, Table]) -> Table:
    """What the engines have together, by device: a version serves where one of them does, and loads until then.

    Why it does not serve on every device is said in its row's `reason`. The first look is complete when all are.
    """
    if len(tables) == 1:
        return next(iter(tables.values()))
    found: dict[tuple[str, int], dict[int, Version]] = {}
    for device, table in tables.items():
        for row in table.versions:
            found.setdefault((row.model, row.version), {})[device] = row
    order = sorted(found, key=lambda key: (key[0], -key[1]))
    complete = bool(tables) and all(table.complete for table in tables.values())
    problem = "" if any(not table.problem for table in tables.values()) else next(iter(tables.values())).problem
    return Table(tuple(_row(found[key]) for key in order), complete, problem)


def _row(rows: Mapping[int, Version]) -> Version:
    for state in ("READY", "LOADING", "UNAVAILABLE"):
        having = [row for row in rows.values() if row.state == state]
        if having:
            break
    reasons = {row.reason for row in rows.values()}
    if len(reasons) == 1 and state != "READY":
        return having[0]
    return msgspec.structs.replace(having[0], reason="; ".join(_reasons(having[0], rows)))


def _reasons(shown: Version, rows: Mapping[int, Version]) -> Iterator[str]:
    for device, row in rows.items():
        if row.state == "UNAVAILABLE" and row.reason:
            yield f"device {device}: {row.reason}"
        elif row.state == "READY" and row.provider != shown.provider:
            yield f"device {device}: runs on {row.provider}"
