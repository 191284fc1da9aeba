"""The page's files over HTTP: small, from memory, with the headers that keep them safe, and part of the package."""

import gzip
import http.client
import json
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from convoy.service.frontend.rest import page
from tests.service.running import Server

MOST_BYTES = 100_000
NAMES = sorted(entry.name for entry in files(page.PACKAGE).iterdir() if not entry.name.startswith("__"))


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.http).netloc, timeout=60)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_all_files_together_are_small() -> None:
    assert sum(len(files(page.PACKAGE).joinpath(name).read_bytes()) for name in NAMES) <= MOST_BYTES


def test_nothing_is_loaded_from_elsewhere() -> None:
    # An address of a namespace is not one that is loaded.
    for name in NAMES:
        text = files(page.PACKAGE).joinpath(name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, name
        assert "https://" not in text, name
        assert "//cdn" not in text, name


def test_packaging_contains_every_file() -> None:
    patterns = json.dumps([entry.name for entry in files(page.PACKAGE).iterdir()])
    project = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    (line,) = [line for line in project.splitlines() if line.startswith('"convoy.service.page"')]
    for name in NAMES:
        assert f'"*{Path(name).suffix}"' in line, patterns


def test_browser_gets_the_page_and_others_a_sign_of_life(server: Server) -> None:
    status, headers, body = get(server, "/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body == files(page.PACKAGE).joinpath("index.html").read_bytes()
    for accept in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        status, headers, body = get(server, "/", **accept)
        assert (status, json.loads(body)) == (200, {"status": "alive"})
        assert "accept" in headers["vary"]


@pytest.mark.parametrize("name", NAMES)
def test_file_is_served_plain_and_compressed(server: Server, name: str) -> None:
    plain = files(page.PACKAGE).joinpath(name).read_bytes()
    path = "/" if name == page.INDEX else f"/page/{name}"
    status, headers, body = get(server, path, accept="text/html")
    assert (status, body) == (200, plain)
    assert "content-encoding" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == page.POLICY
    status, packed, body = get(server, path, accept="text/html", accept_encoding="br, gzip")
    assert (status, packed["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == plain
    assert packed["etag"] != headers["etag"]


def test_known_file_is_not_sent_again(server: Server) -> None:
    _, headers, _ = get(server, "/page/main.js")
    for tags in (headers["etag"], f'"other", {headers["etag"]}', f"W/{headers['etag']}"):
        status, again, body = get(server, "/page/main.js", if_none_match=tags)
        assert (status, body) == (304, b"")
        assert again["etag"] == headers["etag"]
    assert get(server, "/page/main.js", if_none_match='"other"')[0] == 200


def test_encoding_that_is_refused_is_not_used(server: Server) -> None:
    _, headers, _ = get(server, "/page/main.js", accept_encoding="gzip;q=0, identity")
    assert "content-encoding" not in headers


def test_head_has_the_headers_alone(server: Server) -> None:
    _, headers, body = get(server, "/page/main.js")
    status, head, nothing = get(server, "/page/main.js", "HEAD")
    assert (status, nothing) == (200, b"")
    assert (head["etag"], head["content-length"]) == (headers["etag"], str(len(body)))


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/__init__.py", "/page/../config.py", "/page/%2e%2e/x"]
)
def test_other_paths_are_unknown(server: Server, path: str) -> None:
    status, _, body = get(server, path)
    assert (status, json.loads(body)["reason"]) == (404, "UNKNOWN_PATH")


def test_server_without_the_http_api_has_no_page(repository: Path) -> None:
    with Server(repository, ["server.lame_duck_seconds=0", "server.http_api=false"], wait=False) as server:
        assert get(server, "/", accept="text/html")[0] == 404
        assert get(server, "/page/main.js")[0] == 404
        assert get(server, "/api/models")[0] == 404


def test_models_are_described_with_what_the_page_shows(server: Server) -> None:
    _, _, body = get(server, "/api/models")
    found = json.loads(body)
    rows = {(row["model"], row["version"]): row for row in found["models"]}
    assert found["server"]["grpc"] == server.grpc
    letters = rows["letters", 2]
    assert (letters["state"], letters["task"], letters["samples"]) == ("READY", "classification", 2)
    assert letters["input"]["height_px"] == letters["input"]["width_px"] == 8
    assert (rows["colours", 1]["confidence"], rows["plain", 1]["confidence"]) == (True, False)
    assert rows["window", 1]["task"] == "matching"
    assert rows["doubler", 1]["task"] == "tensors"
    assert rows["waves", 1]["tensor"]["axes"][0]["labels"] == ["hip", "knee", "ankle"]
    assert rows["broken", 1]["state"] == "UNAVAILABLE"
    assert rows["broken", 1]["reason"]


def test_sample_is_served_as_it_is(server: Server, repository: Path) -> None:
    path = "/api/models/letters/versions/2/samples/1"
    status, headers, body = get(server, path)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body == (repository / "letters" / "2" / "samples" / "1.png").read_bytes()
    assert get(server, path, if_none_match=headers["etag"])[0] == 304


@pytest.mark.parametrize(
    "path", ["letters/versions/2/samples/3", "letters/versions/2/samples/0", "letters/versions/2/samples/x"]
)
def test_sample_that_is_not_there_is_unknown(server: Server, path: str) -> None:
    status, _, body = get(server, f"/api/models/{path}")
    assert (status, json.loads(body)["reason"]) == (404, "UNKNOWN_PATH")


@pytest.mark.parametrize("path", ["none/versions/1", "letters/versions/9", "letters/versions/x", "broken/versions/1"])
def test_sample_of_a_model_that_does_not_serve_is_unknown(server: Server, path: str) -> None:
    status, _, body = get(server, f"/api/models/{path}/samples/1")
    assert (status, json.loads(body)["reason"]) == (404, "UNKNOWN_MODEL")
