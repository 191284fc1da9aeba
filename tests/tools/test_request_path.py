"""docs/request-path.md names the files that a request meets, and a file that it does not name would be seen."""

import re
from pathlib import Path

import pytest

from tests.service.running import skip_without
from tools import request_path, structure
from tools.request_path import ROOT, Traced

PAGE = (ROOT / "docs" / "request-path.md").read_text()


@pytest.fixture(scope="module")
def processes() -> list[Traced]:
    skip_without("nghttp2")  # the page describes the path through it
    return structure.of_a_jpeg()


def named(page: str) -> set[str]:
    return set(re.findall(r"`(service/[\w/]+\.py)`", page))


# What happens by the clock, and now and then beside a request: the look at the repository, at processes, connections,
# runs, memory and files that are followed, and the supervisor's word to the front ends.
BY_THE_CLOCK = {
    f"service/{name}.py"
    for name in (
        *("engine/acceptance", "engine/model_loader", "engine/profiles", "engine/run_watch", "ipc/pulse", "repository"),
        *("engine/following", "engine/version_states", "sources", "machine", "listener", "ipc/messages"),
        *("supervisor/health", "supervisor/watch", "frontend/transport/http2", "frontend/transport/lifetime"),
        *("supervisor/children", "supervisor/doors", "supervisor/endpoints", "followed", "access", "tls"),
        *("frontend/http_port", "frontend/memory", "frontend/rest/probes"),
    )
}


def test_every_file_that_a_jpeg_meets_is_on_the_page(processes: list[Traced]) -> None:
    assert {file for process in processes for file in process.files} - BY_THE_CLOCK <= named(PAGE)
    assert len([process for process in processes if named(PAGE) & set(process.files) - BY_THE_CLOCK]) == 2


def test_every_file_on_the_page_is_met_or_stands_beside(processes: list[Traced]) -> None:
    met = {file for process in processes for file in process.files}
    # Of streams, of types alone; gauges are written a moment later, once for many requests.
    # The other transport serves where libnghttp2 is not installed. A small file does not land. The watch of runs looks
    # once a second.
    beside = {
        f"service/{name}.py"
        for name in (
            *("errors", "metric_files", "repository", "frontend/streams", "frontend/transport/interface"),
            *("frontend/transport/grpc_aio", "frontend/server", "frontend/landing"),
            *("engine/run_watch", "ipc/pulse"),
        )
    }
    assert named(PAGE) - met <= beside
    assert all((ROOT / file).is_file() for file in named(PAGE))


STEPS = [
    ("service/frontend/transport/opening.py", "opened"),
    ("service/frontend/transport/exchange.py", "Exchange._serve"),
    ("service/frontend/methods.py", "UnaryMethod.__call__"),
    ("service/frontend/vision.py", "Vision.Classify"),
    ("service/frontend/prepare.py", "chunks"),
    ("service/frontend/vision.py", "Vision._classify"),
    ("service/frontend/prepare.py", "Preparer.prepare"),
    ("service/frontend/engine_client.py", "Lease.run"),
    ("service/frontend/postprocess.py", "rankings"),
    ("service/frontend/encoding.py", "response"),
]


def test_steps_come_in_the_order_of_the_page(processes: list[Traced]) -> None:
    (front_end,) = (process for process in processes if STEPS[0][0] in process.files)
    assert [call for call in dict.fromkeys(front_end.calls) if call in STEPS] == STEPS


def reading_path(page: str) -> list[Path]:
    """The files under the last heading, each by its name, from the whole page."""
    part = page.split("## To read it in the code")[1].split("What a request wears", maxsplit=1)[0]
    front_end, _, engine = part.partition("of the front end")
    folders = {"interface.py": "service/frontend/transport"}
    return [
        ROOT / folders.get(name, folder) / name
        for folder, text in (("service/frontend", front_end), ("service/engine", engine))
        for name in re.findall(r"`(\w+\.py)`", text)
    ]


def test_the_reading_path_is_short() -> None:
    files = reading_path(PAGE)
    assert len(files) == 8
    assert sum(len(file.read_text().splitlines()) for file in files) < 2400


def test_returns_are_counted() -> None:
    calls = [(file, "f") for file in "aabbacca"]
    assert request_path.returns(calls) == 2


def test_a_file_without_a_paragraph_would_be_seen(tmp_path: Path) -> None:
    assert "service/frontend/vision.py" not in named(PAGE.replace("vision.py", "oip.py"))
