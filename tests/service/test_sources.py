"""What a server is told to serve: a repository, files by themselves, or both."""

from pathlib import Path

import pytest

from convoy.service import repository
from convoy.service.config import ModelConfig
from convoy.service.errors import BadConfig
from convoy.service.sources import Place, Source, name_of, source_of


def put(file: Path, data: bytes = b"network") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("lenet5.onnx", "lenet5"),
        ("LeNet 5.v2.onnx", "lenet-5-v2"),
        ("lenet/model.onnx", "lenet"),
        ("lenet/3/model.onnx", "lenet"),
        ("lenet/3/unet.onnx", "unet"),
        ("模型.onnx", "model"),
        ("x" * 80 + ".onnx", "x" * 64),
    ],
)
def test_file_has_its_own_name_or_that_of_its_folder(tmp_path: Path, file: str, name: str) -> None:
    assert name_of(put(tmp_path / file)) == name


@pytest.mark.parametrize(
    ("folder", "name"),
    [("lenet", "lenet"), ("lenet/1", "lenet"), ("lenet/1/..", "lenet"), ("My Model", "my-model")],
)
def test_folder_has_its_own_name_or_that_above_a_version(tmp_path: Path, folder: str, name: str) -> None:
    for made in ("lenet/1", "My Model"):
        (tmp_path / made).mkdir(parents=True)
    assert name_of(tmp_path / folder) == name


def test_file_by_itself_is_version_one_with_the_settings_beside_it(tmp_path: Path) -> None:
    file = put(tmp_path / "lenet5.onnx")
    put(tmp_path / "model.toml", b"max_batch_size = 4")
    source = source_of(file)
    listing = source.scan()["lenet5"]
    assert list(listing.files) == [1]
    assert listing.config == ModelConfig(max_batch_size=4)
    assert source.place("lenet5", 1) == Place(file, tmp_path, alone=True)


@pytest.mark.parametrize("inside", ["1/model.onnx", "model.onnx", "anything.onnx"])
def test_folder_of_one_model_is_that_model(tmp_path: Path, inside: str) -> None:
    file = put(tmp_path / "models" / inside)
    for source in (source_of(tmp_path / "models"), source_of(models=[f"models={tmp_path / 'models'}"])):
        assert list(source.scan()["models"].files) == [1]
        assert source.place("models", 1).file == file


def test_versions_of_a_model_folder_are_all_found(tmp_path: Path) -> None:
    for version in ("1", "3"):
        put(tmp_path / "lenet" / version / "model.onnx")
    put(tmp_path / "lenet" / "model.toml", b"versions = [3]")
    source = source_of(models=[f"digits={tmp_path / 'lenet'}"])
    assert set(source.scan()["digits"].files) == {1, 3}
    assert source.scan()["digits"].config.versions == (3,)
    assert source.place("digits", 3) == Place(tmp_path / "lenet" / "3" / "model.onnx", tmp_path / "lenet")


def test_folder_of_models_is_a_repository(tmp_path: Path) -> None:
    put(tmp_path / "lenet" / "1" / "model.onnx")
    assert source_of(tmp_path) == source_of(root=tmp_path) == Source(tmp_path)
    assert source_of(tmp_path).place("lenet", 1).file == tmp_path / "lenet" / "1" / "model.onnx"


def test_model_named_by_itself_takes_the_place_of_one_in_the_repository(tmp_path: Path) -> None:
    put(tmp_path / "repository" / "lenet" / "7" / "model.onnx")
    put(tmp_path / "repository" / "unet" / "1" / "model.onnx")
    file = put(tmp_path / "lenet.onnx")
    source = source_of(root=tmp_path / "repository", models=[f"lenet={file}"])
    found = source.scan()
    assert {name: set(listing.files) for name, listing in found.items()} == {"lenet": {1}, "unet": {1}}
    assert source.place("lenet", 1).file == file


@pytest.mark.parametrize(
    ("path", "root", "models", "message"),
    [
        (None, None, [], "nothing to serve: name an ONNX file, .*, or a model repository"),
        ("nowhere.onnx", None, [], "does not exist, want an .onnx file, or a model repository"),
        ("weights.pt", None, [], "is no .onnx file: convoy export and convoy adopt write them"),
        ("several", None, [], "is no model repository, but has 2 .onnx files: name one of them, or each by --model"),
        ("repository", "repository", [], "are both model repositories, want one"),
        (None, "lenet.onnx", [], "is not a directory"),
        (None, None, ["lenet"], "--model 'lenet', want NAME=PATH such as"),
        (None, None, ["lenet="], "--model 'lenet=', want NAME=PATH"),
        (None, None, ["LeNet=lenet.onnx"], "model name 'LeNet', want 1 to 64 of a-z"),
        (None, None, ["lenet=nowhere"], "model 'lenet' is to be in 'nowhere', but there is no such file or folder"),
        ("lenet.onnx", None, ["lenet=lenet.onnx"], "model 'lenet' is named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    path: str | None,
    root: str | None,
    models: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("lenet.onnx", "weights.pt", "several/a.onnx", "several/b.onnx", "repository/lenet/1/model.onnx"):
        put(tmp_path / file)
    with pytest.raises(BadConfig, match=message):
        source_of(Path(path) if path else None, Path(root) if root else None, models)


def test_only_files_named_alike_belong_to_a_file_in_a_shared_folder(tmp_path: Path) -> None:
    file = put(tmp_path / "lenet.onnx")
    source = source_of(file)
    before = source.scan()["lenet"].files[1]
    for stranger in ("unet.onnx.data", "lenet-int8.onnx", "lenet5.data", "notes.txt"):
        put(tmp_path / stranger)
    assert source.scan()["lenet"].files[1] == before
    for own in ("lenet.onnx.data", "lenet_weights.bin"):
        put(tmp_path / own)
        now = source.scan()["lenet"].files[1]
        assert now != before
        before = now


def test_replaced_file_and_switched_link_are_other_states(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a" / "lenet.onnx"), put(tmp_path / "b" / "lenet.onnx")
    link = tmp_path / "current.onnx"
    link.symlink_to(first)
    source = source_of(link)
    before = source.scan()["current"].files[1]
    assert source.place("current", 1) == Place(first, first.parent, alone=True)
    link.unlink()
    link.symlink_to(second)
    assert source.scan()["current"].files[1] != before
    assert source.place("current", 1).file == second


def test_folder_that_is_a_link_is_followed_as_it_is(tmp_path: Path) -> None:
    put(tmp_path / "first" / "net.onnx")
    (tmp_path / "mounted").symlink_to("first")
    source = source_of(tmp_path / "mounted")
    before = source.scan()["mounted"].files[1]
    assert source.place("mounted", 1).file == tmp_path / "mounted" / "net.onnx"
    put(tmp_path / "second" / "net.onnx")
    (tmp_path / "mounted").unlink()
    (tmp_path / "mounted").symlink_to("second")
    assert source.scan()["mounted"].files[1] != before


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    file = put(tmp_path / "lenet.onnx")
    source = source_of(file)
    file.unlink()
    file.symlink_to(tmp_path / "other.onnx")
    (tmp_path / "other.onnx").symlink_to(file)
    assert source.scan()["lenet"].empty == "its file is missing"


def test_file_that_went_away_says_so(tmp_path: Path) -> None:
    file = put(tmp_path / "lenet.onnx")
    source = source_of(file)
    file.unlink()
    assert source.scan()["lenet"].empty == "its file is missing"


def test_nothing_is_written_beside_a_file_by_itself(tmp_path: Path) -> None:
    file = put(tmp_path / "lenet.onnx")
    put(tmp_path / "repository" / "unet" / "2" / "model.onnx")
    source = Source(tmp_path / "repository", {"lenet": file}, cache=tmp_path / "cache")
    kept = source.keeping("lenet", 1)
    assert kept.is_dir()
    assert kept.is_relative_to(tmp_path / "cache")
    assert source.keeping("unet", 2) == tmp_path / "repository" / "unet" / "2"


def test_profile_beside_a_file_is_used_where_there_is_no_later_one(tmp_path: Path) -> None:
    file = put(tmp_path / "lenet" / "model.onnx")
    put(tmp_path / "lenet" / "profile.json", b"measured")
    source = Source(None, {"lenet": file}, cache=tmp_path / "cache")
    kept = source.keeping("lenet", 1) / "profile.json"
    assert kept.read_bytes() == b"measured"
    kept.write_bytes(b"later")
    assert source.keeping("lenet", 1) / "profile.json" == kept
    assert kept.read_bytes() == b"later"


def test_relative_paths_survive_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "lenet.onnx")
    monkeypatch.chdir(tmp_path)
    source = source_of(Path("lenet.onnx")).absolute()
    monkeypatch.chdir("/")
    assert list(source.scan()["lenet"].files) == [1]


@pytest.mark.parametrize("link", ["current", "current/..data"])
def test_link_that_is_exchanged_during_a_scan_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    # git-sync exchanges the repository itself, Kubernetes a link in it.
    if link == "current":
        old, new = tmp_path / "old", tmp_path / "new"
        put(old / "net" / "1" / "model.onnx")
        put(new / "net" / "2" / "model.onnx")
    else:
        old, new = tmp_path / "current" / "..old", tmp_path / "current" / "..new"
        put(old / "net" / "1" / "model.onnx")
        put(new / "net" / "2" / "model.onnx")
        (tmp_path / "current" / "net").symlink_to("..data/net")
    (tmp_path / link).symlink_to(old)
    real, exchanged = repository.stamp, []

    def stamp(file: Path) -> repository.Stamp | None:
        if not exchanged:  # the version has been found, and is about to be looked at
            exchanged.append(file)
            (tmp_path / "fresh").symlink_to(new)
            (tmp_path / "fresh").replace(tmp_path / link)
        return real(file)

    monkeypatch.setattr(repository, "stamp", stamp)
    listings = Source(tmp_path / "current").scan()
    assert exchanged
    assert (list(listings), list(listings["net"].files), listings["net"].missing) == (["net"], [2], ())
