"""What README.md and docs/ tell a user to type can be typed, to the letter but for the server's port."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from convoy.models.data.registry import DATA
from convoy.models.registry import ARCHITECTURES
from convoy.service import cli
from convoy.service.commands import bench
from tests.service import networks
from tests.service.certificates import Authority
from tests.service.running import Server
from tests.service.test_vision import colourful, grey
from tools import demo

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
PORT = "127.0.0.1:8001"


def asked() -> list[list[str]]:
    """The words of every line that starts `.venv/bin/convoy`, without its comment: they are run as they are."""
    found = re.findall(r"^    \.venv/bin/convoy (.*?)(?: *#.*)?$", "\n".join(PAGES.values()), re.MULTILINE)
    return [line.split() for line in dict.fromkeys(found)]


ASKING = [
    words for words in asked() if words[0] != "serve" and cli.COMMANDS[words[0]].module.startswith("convoy.service.")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Small networks under the names that the pages give to trained ones."""
    repository = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), repository, "lenet5")
    networks.save(networks.segmenter(), repository, "unet")
    with Server(repository, ["server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands who has run the demo: the same pictures by name, each of the kind that its name tells."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "demo" / "images"
    pictures.mkdir(parents=True)
    for digit in demo.DIGITS_SHOWN:
        Image.fromarray(grey(digit)).save(pictures / f"digit-{digit}.png")
    for number in range(1, len(demo.SCENES_SHOWN) + 1):
        Image.fromarray(colourful(number, 12, 16)).save(pictures / f"scene-{number}.png")
    return tmp_path


def test_what_is_exported_was_trained_before_and_is_what_is_served() -> None:
    trained: set[str] = set()
    repositories: set[str] = set()
    for words in asked():
        match words:
            case ["train", architecture, "--data", data]:
                assert architecture in ARCHITECTURES
                assert data in DATA
                trained.add(f"runs/{architecture}-{data}")
            case ["evaluate", run]:
                assert run in trained
            case ["export", run, "--repository", repository]:
                assert run in trained
                repositories.add(repository)
            case ["serve", "--repository", repository]:
                assert {repository} == repositories
    assert trained == {f"runs/{name}-{data}" for name, data in demo.NETWORKS.items()}


def test_pages_ask_the_server_for_everything_it_can_do() -> None:
    assert {words[0] for words in ASKING} >= {"models", "classify", "segment", "bench"}


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_command_that_asks_the_server_works(
    server: Server, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_WARM_UP", 0.0)  # the first requests count, which are sent however busy the machine is
    words = ["1" if before == "--seconds" else word for before, word in zip(["", *words], words, strict=False)]
    assert cli.run([*words, "--server", server.grpc]) == 0
    if words[0] == "segment":
        assert {path.name for path in folder.glob("*.png")} == {"mask.png", "mask-overlay.png"}


def examples() -> dict[str, str]:
    """Every example of the client, by its page and its place there."""
    return {
        f"{page} {number}": block
        for page, text in PAGES.items()
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        if "import convoy" in block
    }


def printed_by_example(name: str, server: Server, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What an example of the client prints, which is run on its own."""
    block = examples()[name]
    assert PORT in block
    exec(re.sub(r"deadline=[\d.]+", "deadline=30", block.replace(PORT, server.grpc)), {})
    return capsys.readouterr().out.splitlines()


# Of servers whose addresses are made up.
NOWHERE = {"docs/client.md 2", "docs/fleets.md 0"}


def test_every_example_of_the_client_is_one_of_those_tried_here() -> None:
    tried = {"README.md 0", "docs/client.md 0", "docs/client.md 1", "docs/security.md 0", "docs/large-pictures.md 0"}
    assert set(examples()) == tried | NOWHERE


@pytest.mark.parametrize("name", sorted(NOWHERE))
def test_example_that_names_servers_elsewhere_is_accepted(name: str) -> None:
    exec(examples()[name], {})  # a client connects with its first call


def test_example_of_the_readme_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_by_example("README.md 0", server, capsys)[2] == "(12, 16)"


def test_example_of_large_pictures_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = printed_by_example("docs/large-pictures.md 0", server, capsys)
    assert line.startswith("(1200, 1500) ")


def test_example_of_the_client_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed_by_example("docs/client.md 0", server, capsys)
    assert lines[2] == "(12, 16) uint8"
    refused = "image starts with the bytes 6e 6f 20 69 6d 61 67 65, want JPEG or PNG"
    assert [line.split("(")[0] for line in lines[3:]] == ["Classification", refused, "Classification"]


def test_example_of_a_stream_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed_by_example("docs/client.md 1", server, capsys)
    answered = sorted(line.split("(")[0] for line in lines)
    assert answered == sorted(f"digit-{digit}.png Classification" for digit in demo.DIGITS_SHOWN)


def test_every_picture_that_is_sent_is_one_that_the_demo_leaves(folder: Path) -> None:
    text = "\n".join(PAGES.values())
    in_a_shell = re.findall(r"base64 -w0 ([^)]+)\)", text)
    named = {*in_a_shell, *re.findall(r"demo/images/[\w/-]+\.png", text)}
    assert in_a_shell
    assert [name for name in named if not (folder / name).is_file()] == []


def test_example_of_a_client_with_a_certificate_works(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(folder)
    pair, own = authority.sign("server"), authority.sign("me")
    for source, name in ((authority.certificate, "ca.pem"), (own.certificate, "me.pem"), (own.key, "me.key")):
        (folder / name).write_bytes(source.read_bytes())
    files = {"certificate": pair.certificate, "key": pair.key, "client_ca": folder / "ca.pem"}
    settings = [f"tls.{name}={file}" for name, file in files.items()]
    with Server(server.repository, [*settings, "server.lame_duck_seconds=0"]) as secured:
        assert printed_by_example("docs/security.md 0", secured, capsys) == ["['lenet5', 'unet']"]
