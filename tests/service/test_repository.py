"""What is a model in a folder, and which row of the table serves a request."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.service.config import ModelConfig
from convoy.service.errors import ModelUnavailable, UnknownModel
from convoy.service.metadata import Document, InputSpec
from convoy.service.repository import (
    Listing,
    Stamp,
    State,
    Table,
    TensorSpec,
    Version,
    decode_table,
    encode_table,
    model_file,
    scan,
    wanted,
)


def put(root: Path, name: str, version: str, data: bytes = b"network") -> Path:
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)
    return folder / "model.onnx"


def row(model: str, version: int, state: State, reason: str = "") -> Version:
    return Version(model=model, version=version, state=state, reason=reason)


def test_versions_with_and_without_a_file_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path, "digits", "1")
    put(tmp_path, "digits", "12")
    (tmp_path / "digits" / "3").mkdir()
    (tmp_path / "scenes").mkdir()
    found = scan(tmp_path)
    assert list(found) == ["digits", "scenes"]
    assert set(found["digits"].files) == {1, 12}
    assert found["digits"].missing == (3,)
    assert found["scenes"] == Listing(empty="its folder is empty, want a version in it, such as 1/model.onnx")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("model.onnx", "'model.onnx' is in no version folder: move it to 1/model.onnx in the model's folder"),
        ("lenet.onnx", "'lenet.onnx' is in no version folder: move it to 1/model.onnx in the model's folder"),
        ("v1/model.onnx", "it has no version folder with a model file, such as 1/model.onnx"),
        ("notes.txt", "it has no version folder with a model file, such as 1/model.onnx"),
    ],
)
def test_folder_without_a_version_says_what_is_missing(tmp_path: Path, file: str, reason: str) -> None:
    (tmp_path / "digits" / file).parent.mkdir(parents=True)
    (tmp_path / "digits" / file).write_bytes(b"network")
    assert scan(tmp_path)["digits"].empty == reason


def test_folder_with_a_version_is_not_empty(tmp_path: Path) -> None:
    put(tmp_path, "digits", "1")
    assert scan(tmp_path)["digits"].empty == ""


@pytest.mark.parametrize("name", ["a", "lenet-5", "_", "0", "x" * 64, "digits_v2"])
def test_folder_with_a_models_name_is_a_model(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "1")
    assert set(scan(tmp_path)) == {name}


@pytest.mark.parametrize(
    "name", ["Digits", "x" * 65, ".hidden", "with space", "ünet", "a.b", "a\n", "lenet5.tmp", "a,b", "..."]
)
def test_folder_with_another_name_is_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "1")
    put(tmp_path, "sound", "1")
    assert set(scan(tmp_path)) == {"sound"}


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "v1", "1e3", "٣", "1" * 19, ".1.tmp", " 1", "1\n"])
def test_folder_that_is_no_version_is_passed_over(tmp_path: Path, version: str) -> None:
    put(tmp_path, "digits", version)
    put(tmp_path, "digits", "1" * 18)
    assert set(scan(tmp_path)["digits"].files) == {int("1" * 18)}
    assert scan(tmp_path)["digits"].missing == ()


def test_file_in_the_place_of_a_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("")
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "1").write_text("")
    assert scan(tmp_path)["scenes"].files == {}


def test_what_is_no_regular_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "digits" / "1" / "model.onnx").mkdir(parents=True)
    (tmp_path / "digits" / "2").mkdir()
    os.mkfifo(tmp_path / "digits" / "2" / "model.onnx")
    (tmp_path / "digits" / "3").mkdir()
    (tmp_path / "digits" / "3" / "model.onnx").symlink_to("nowhere")
    assert sorted(scan(tmp_path)["digits"].missing) == [1, 2, 3]


def test_links_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    put(tmp_path / "elsewhere", "digits", "1")
    (root / "digits").symlink_to(tmp_path / "elsewhere" / "digits")
    assert set(scan(root)["digits"].files) == {1}


def test_stamp_changes_with_the_file_and_only_then(tmp_path: Path) -> None:
    file = put(tmp_path, "digits", "1")
    first = scan(tmp_path)["digits"].files[1]
    assert scan(tmp_path)["digits"].files[1] == first
    os.utime(file, ns=(0, first.modified_ns + 1))
    touched = scan(tmp_path)["digits"].files[1]
    file.write_bytes(b"another network")
    os.utime(file, ns=(0, first.modified_ns + 1))
    longer = scan(tmp_path)["digits"].files[1]
    part = file.with_name("part")
    part.write_bytes(b"another network")
    os.utime(part, ns=(0, first.modified_ns + 1))
    part.replace(file)
    replaced = scan(tmp_path)["digits"].files[1]
    assert len({first, touched, longer, replaced}) == 4


def test_settings_of_a_model_are_read(tmp_path: Path) -> None:
    put(tmp_path, "digits", "1")
    (tmp_path / "digits" / "model.toml").write_text('max_batch_size = 8\nprovider = "cpu"\n')
    listing = scan(tmp_path)["digits"]
    assert listing.config == ModelConfig(max_batch_size=8, provider="cpu")
    assert listing.problem == ""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"max_batch_size = 0", "max_batch_size"),
        (b"max_batch_size = 'many'", "max_batch_size"),
        (b"batch = 4", "unknown key batch"),
        (b"max_batch_size = ", "not TOML"),
        (b"\xff\xfe\x00", "line 1 ends within a character, want whole UTF-16"),
        (b"# caf\xe9\n", "line 1 is not UTF-8 (byte 0xe9), want the file saved as UTF-8"),
    ],
)
def test_wrong_settings_are_the_models_problem(tmp_path: Path, data: bytes, why: str) -> None:
    put(tmp_path, "digits", "1")
    put(tmp_path, "scenes", "1")
    (tmp_path / "digits" / "model.toml").write_bytes(data)
    found = scan(tmp_path)
    assert found["digits"].problem.startswith("model.toml")
    assert why in found["digits"].problem
    assert "\n" not in found["digits"].problem
    assert str(tmp_path) not in found["digits"].problem
    assert found["scenes"].problem == ""
    assert wanted(found["digits"], "all") == []


def test_folder_in_the_place_of_settings_is_the_models_problem(tmp_path: Path) -> None:
    put(tmp_path, "digits", "1")
    (tmp_path / "digits" / "model.toml").mkdir()
    assert scan(tmp_path)["digits"].problem == "model.toml is not a regular file"


def deny(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError) -> None:
    """Listing a folder of this name fails. (Permissions would not do: a superuser may read all.)"""
    real = Path.iterdir

    def listed(folder: Path) -> Iterator[Path]:
        if folder.name == name:
            raise error
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", listed)


def test_unreadable_folder_is_its_models_problem_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "digits", "1")
    put(tmp_path, "scenes", "1")
    deny(monkeypatch, "digits", PermissionError(errno.EACCES, "Permission denied", str(tmp_path)))
    found = scan(tmp_path)
    assert found["digits"] == Listing(problem="its folder cannot be read: Permission denied")
    assert set(found["scenes"].files) == {1}


def test_folder_that_is_taken_away_meanwhile_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "digits", "1")
    put(tmp_path, "scenes", "1")
    deny(monkeypatch, "digits", FileNotFoundError(errno.ENOENT, "No such file or directory"))
    assert set(scan(tmp_path)) == {"scenes"}


def test_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "nowhere")


def test_model_file_is_the_one_that_was_scanned(tmp_path: Path) -> None:
    assert model_file(tmp_path, "digits", 7) == put(tmp_path, "digits", "7")


def test_highest_version_that_has_not_failed_as_it_is_now_is_chosen() -> None:
    stamps = {version: Stamp(version, 10, 10) for version in (1, 2, 10)}
    listing = Listing(files=stamps, missing=(11,))
    assert wanted(listing, "latest 1") == [10]
    assert wanted(listing, "latest 1", [(10, stamps[10])]) == [2]
    assert wanted(listing, "latest 1", [(10, Stamp(10, 10, 9))]) == [
        10
    ]  # that failure was of another state of the file
    assert wanted(listing, "latest 1", stamps.items()) == []
    assert wanted(Listing(), "latest 1") == []


def test_version_that_serves_keeps_its_place_whatever_became_of_its_file() -> None:
    listing = Listing(files={version: Stamp(version, 10, 7) for version in (1, 2)})
    assert wanted(listing, "latest 1", [(2, listing.files[2])], serving={2}) == [2]
    assert wanted(Listing(files={1: Stamp(1, 10, 7)}), "latest 1", serving={2}) == [1]


def test_version_that_is_long_in_coming_leaves_its_place_to_the_next() -> None:
    listing = Listing(files={version: Stamp(version, 10, 7) for version in (1, 2, 3)})
    assert wanted(listing, "latest 1", late={3}) == [3, 2]
    assert wanted(listing, "latest 1", late={3, 2}) == [3, 2, 1]


def test_settings_choose_versions() -> None:
    listing = Listing(files={version: Stamp(version, 10, 7) for version in (1, 2, 10)})
    chosen = {setting: wanted(listing, setting) for setting in ("latest 1", "latest 2", "latest 9", "all", (2, 1, 7))}
    assert list(chosen.values()) == [[10], [10, 2], [10, 2, 1], [10, 2, 1], [2, 1]]


TABLE = Table(
    (
        row("digits", 3, "UNAVAILABLE", "cut short"),
        row("digits", 2, "READY"),
        row("digits", 1, "UNAVAILABLE", "version 2 serves"),
        row("loading", 2, "LOADING", "loading"),
        row("loading", 1, "UNAVAILABLE", "waits"),
        row("swapping", 2, "LOADING", "loading"),
        row("swapping", 1, "READY"),
        row("broken", 1, "UNAVAILABLE", "no network"),
    ),
    complete=True,
)


@pytest.mark.parametrize(("model", "version", "serves"), [("digits", 0, 2), ("digits", 2, 2), ("swapping", 0, 1)])
def test_version_that_serves_is_found(model: str, version: int, serves: int) -> None:
    found = TABLE.serving(model, version)
    assert (found.model, found.version, found.state) == (model, serves, "READY")


@pytest.mark.parametrize(
    ("model", "version", "why"),
    [
        ("nothing", 0, "'nothing' is unknown: the server has broken, digits, loading, swapping$"),
        ("nothing", 1, "'nothing' is unknown"),
        ("", 0, "'' is unknown"),
        ("digit", 0, "'digit' is unknown"),
        ("digits", 4, "no version 4"),
        ("digits", -2, "no version -2"),
        ("digits", 3, "version 3 of model 'digits' is not served: cut short"),
        ("digits", 1, "version 2 serves"),
    ],
)
def test_what_is_not_there_is_unknown(model: str, version: int, why: str) -> None:
    with pytest.raises(UnknownModel, match=why):
        TABLE.serving(model, version)


@pytest.mark.parametrize(
    ("model", "version", "why"),
    [
        ("loading", 0, "is loading"),
        ("loading", 2, "is loading"),
        ("swapping", 2, "is loading"),
        ("broken", 0, "no net"),
    ],
)
def test_what_may_come_is_unavailable(model: str, version: int, why: str) -> None:
    with pytest.raises(ModelUnavailable, match=why):
        TABLE.serving(model, version)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (0, "the server has none"),
        (8, "the server has m0, m1, m2, m3, m4, m5, m6, m7"),
        (10, "the server has m0, m1, m2, m3, m4, m5, m6, m7 and 2 more; ListModels names them"),
    ],
)
def test_unknown_model_is_told_which_there_are(models: int, said: str) -> None:
    table = Table(tuple(row(f"m{number}", 1, "READY") for number in range(models)), complete=True)
    with pytest.raises(UnknownModel) as refused:
        table.serving("digits")
    assert refused.value.message == f"model 'digits' is unknown: {said}"


@pytest.mark.parametrize("complete", [True, False])
def test_made_up_name_comes_back_in_part(complete: bool) -> None:
    with pytest.raises((UnknownModel, ModelUnavailable)) as refused:
        Table((), complete).serving("z" * 100_000)
    assert "z" * 64 in refused.value.message
    assert len(refused.value.message) < 128


def test_loading_has_a_hint_when_to_try_again() -> None:
    with pytest.raises(ModelUnavailable) as loading:
        TABLE.serving("loading")
    assert loading.value.retry_after


def test_nothing_is_unknown_before_the_first_look_is_complete() -> None:
    with pytest.raises(ModelUnavailable):
        Table((row("digits", 1, "READY"),), complete=False).serving("other")
    with pytest.raises(UnknownModel):
        Table((row("digits", 1, "READY"),), complete=True).serving("other")


@pytest.mark.parametrize(
    ("table", "ready"),
    [
        (Table(), False),
        (Table((), complete=True), False),
        (Table((row("a", 1, "READY"),), complete=False), False),
        (Table((row("a", 1, "LOADING"),), complete=True), False),
        (Table((row("a", 1, "UNAVAILABLE"), row("b", 1, "READY")), complete=True), True),
    ],
)
def test_ready_is_a_complete_look_with_something_that_serves(table: Table, ready: bool) -> None:
    assert table.ready is ready


def test_table_survives_its_way_to_the_front_ends() -> None:
    spec = TensorSpec("image", "uint8", (None, 8, None, 3), ("N", "", "W", ""))
    document = Document(
        task="segmentation",
        labels=["sky", "Ünder \N{SNOWMAN}"],
        palette=[(0, 0, 0), (255, 255, 255)],
        input=InputSpec(colour="RGB", multiple=4, fit="pad"),
    )
    full = Version(
        model="scenes",
        version=10**18 - 1,
        state="READY",
        provider="CPUExecutionProvider",
        document=document,
        inputs=(spec,),
        outputs=(spec, spec),
        batched=True,
        max_batch_size=7,
        max_queue_delay_ms=2.5,
    )
    table = Table((full, *TABLE.versions), complete=True)
    assert decode_table(encode_table(table)) == table
    assert decode_table(encode_table(Table())) == Table()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_settings_are_read_as_editors_save_them(tmp_path: Path, encoding: str) -> None:
    put(tmp_path, "digits", "1")
    (tmp_path / "digits" / "model.toml").write_bytes("# größer\r\nmax_batch_size = 8\r\n".encode(encoding))
    found = scan(tmp_path)["digits"]
    assert (found.problem, found.config.max_batch_size) == ("", 8)
