"""Sources of bulk scoring: what counts as an image, its id, its bytes, and every fault in one line."""

import contextlib
import inspect
import io
import os
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from convoy.service.errors import BadConfig, BadImage
from convoy.service.scoring import parquets, sources
from convoy.service.scoring.sources import Cell, Entry, File, Member, Refused

BYTES = {f"{index:03}.jpg": f"image {index}".encode() * (index + 1) for index in range(20)}


def ids(source: object, **options: str) -> list[str]:
    return [entry.id for entry in sources.listed(str(source), **options)]


def contents(source: object, **options: str) -> dict[str, bytes]:
    return {entry.id: sources.read(entry) for entry in sources.listed(str(source), **options)}


def refusal(source: object, **options: str) -> str:
    with pytest.raises(BadConfig) as caught:
        ids(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Folders and patterns


def test_a_folder_is_listed_with_those_below_it_by_name(tmp_path: Path) -> None:
    write(tmp_path / "photos", ["b.png", "a/2.jpg", "a/1.JPEG", "a.jpg", "c/d/e.webp"])
    assert ids("photos") == [
        "photos/a/1.JPEG",
        "photos/a/2.jpg",
        "photos/a.jpg",
        "photos/b.png",
        "photos/c/d/e.webp",
    ]
    assert contents("photos")["photos/a/1.JPEG"] == b"a/1.JPEG"


def test_what_has_no_name_of_an_image_is_skipped_and_so_is_what_training_skips(tmp_path: Path) -> None:
    write(tmp_path / "photos", ["a.jpg", "notes.txt", ".b.jpg", ".git/c.jpg", "@eaDir/d.jpg", "Thumbs.db"])
    assert ids("photos") == ["photos/a.jpg"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    write(tmp_path, ["elsewhere/a.jpg", "photos/b.jpg"])
    (tmp_path / "photos/c.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/gone.jpg").symlink_to("nowhere")
    entries = {entry.id: entry for entry in sources.listed("photos")}
    assert list(entries) == ["photos/b.jpg", "photos/c.jpg", "photos/gone.jpg"]
    assert sources.read(entries["photos/c.jpg"]) == b"elsewhere/a.jpg"
    with pytest.raises(FileNotFoundError):
        sources.read(entries["photos/gone.jpg"])


def test_names_that_are_not_utf_8_have_ids_that_parquet_takes(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Path(os.fsdecode(b"photos/caf\xe9.jpg")).write_bytes(b"coffee")
    assert contents("photos") == {"photos/caf\\xe9.jpg": b"coffee"}
    pa.array(ids("photos"), pa.string())


def test_fifos_and_folders_never_make_a_reader_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    write(tmp_path, ["a.jpg"])
    assert ids(tmp_path) == [f"{tmp_path}/a.jpg"]
    for name in ("pipe.jpg", ""):
        with pytest.raises(BadImage, match="want a file"):
            sources.read(Entry("x", File(str(tmp_path / name))))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(BadImage, match="has 314572800 bytes, want at most 268435456"):
        contents(tmp_path)


def test_patterns_match_files_in_any_number_of_folders(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.jpg", "a/b/2.jpg", "a/b/3.png", "a/.h/4.jpg", "a/notes.txt", "a/lost+found/5.jpg"])
    assert ids("a/**/*.jpg") == ["a/1.jpg", "a/b/2.jpg"]
    assert ids("a/*/*") == ["a/b/2.jpg", "a/b/3.png"]
    os.mkfifo("a/b/pipe.tar")  # would wait for a writer
    assert ids("a/[b]/[!3]*") == ["a/b/2.jpg"]
    assert ids("a/lost+found/*") == ["a/lost+found/5.jpg"]  # it was asked for


def test_a_name_with_the_signs_of_a_pattern_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, ["a[1].jpg", "a1.jpg"])
    assert ids("a[1].jpg") == ["a[1].jpg"]


def test_folders_may_be_nested_deeper_than_python_recurses() -> None:
    image = Path(*"d" * 300, "a.jpg")
    write(Path(), [str(image)])
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert ids("d") == [str(image)]
    finally:
        sys.setrecursionlimit(before)


def test_nothing_to_score_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, ["empty/notes.txt", "list.csv"])
    assert refusal("empty") == "'empty' has no images in it"
    assert refusal("*.gif") == "'*.gif' has no images in it"
    assert "no file or folder 'nowhere'" in refusal("nowhere")
    Path("list.csv").write_text("path\n")
    assert refusal("list.csv") == "'list.csv' has no images in it"


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["photos/a/1.jpg", "photos/b/2.jpg"])
    scan = os.scandir

    def forbidding(path: str) -> object:
        if path == "photos/b":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    assert refusal("photos") == "folder 'photos/b' cannot be read: Permission denied"


# Tars


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz", "shard.tgz"])
def test_members_of_a_tar_are_read_in_any_order_by_any_thread(tmp_path: Path, name: str) -> None:
    packed(tmp_path / name, BYTES | {"000.cls": b"3", "sub/x.jpg": b"below"})
    entries = list(sources.listed(name))
    assert [entry.id for entry in entries] == [*(f"{name}!{each}" for each in BYTES), f"{name}!sub/x.jpg"]
    random.Random(7).shuffle(entries)
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(sources.read, entries))
    assert {entry.id.partition("!")[2]: data for entry, data in zip(entries, read, strict=True)} == BYTES | {
        "sub/x.jpg": b"below"
    }


def test_shards_follow_each_other_by_name_and_a_folder_may_have_them(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    packed(tmp_path / "shards/s-1.tar", {"a.jpg": b"2"})
    packed(tmp_path / "shards/s-0.tar", {"a.jpg": b"1"})
    wanted = {"shards/s-0.tar!a.jpg": b"1", "shards/s-1.tar!a.jpg": b"2"}
    assert contents("shards/s-*.tar") == contents("shards") == wanted


def test_names_in_a_hostile_tar_are_ids_and_never_paths(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open("evil.tar", "w") as archive:
        for name, kind in (("../up.jpg", tarfile.REGTYPE), ("/etc/a.jpg", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, 4
            archive.addfile(member, io.BytesIO(b"data"))
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(member)
    entries = {entry.id.partition("!")[2]: entry for entry in sources.listed("evil.tar")}
    assert list(entries) == ["../up.jpg", "/etc/a.jpg", "link.jpg", "hard.jpg", "dev.jpg"]
    assert sources.read(entries["../up.jpg"]) == b"data"
    for name in ("link.jpg", "hard.jpg", "dev.jpg"):
        with pytest.raises(BadImage, match="no bytes of its own"):
            sources.read(entries[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "secret.jpg"]


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz"])
def test_a_tar_that_is_cut_off_anywhere_is_one_line(tmp_path: Path, name: str) -> None:
    whole = packed(tmp_path / name, dict(list(BYTES.items())[:4])).read_bytes()
    members = 8 * 512 if name.endswith(".tar") else len(whole)  # what follows is the end mark, and filling
    for size in {0, 1, *range(3, members, 97), *range(512, members, 512)}:
        (tmp_path / name).write_bytes(whole[:size])
        assert "cut off, damaged or no tar" in refusal(name)


def test_a_tar_with_any_byte_changed_is_refused_or_listed(tmp_path: Path) -> None:
    whole = packed(tmp_path / "shard.tar", dict(list(BYTES.items())[:3])).read_bytes()
    for seed in range(300):
        chance = random.Random(seed)
        data = bytearray(whole[: 8 * 512])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "shard.tar").write_bytes(data + bytes(1024))
        try:
            for entry in sources.listed("shard.tar"):
                with contextlib.suppress(BadImage):
                    sources.read(entry)
        except BadConfig as error:
            assert "\n" not in str(error)  # noqa: PT017  both outcomes are right


def test_a_tar_that_has_changed_since_is_a_row_with_an_error(tmp_path: Path) -> None:
    packed(tmp_path / "shard.tar", BYTES)
    entries = list(sources.listed("shard.tar"))
    os.truncate("shard.tar", 1000)
    with pytest.raises(BadImage, match="has changed since it was listed"):
        sources.read(entries[-1])


def test_a_tar_is_listed_without_keeping_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_TOGETHER", 100)
    with tarfile.open("many.tar", "w") as archive:
        for index in range(1000):
            archive.addfile(tarfile.TarInfo(f"{index}.jpg"))
    ids("many.tar")
    tracemalloc.start()
    try:
        assert sum(1 for _ in sources.listed("many.tar")) == 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000  # 1,000 TarInfo need 500 kB


# Parquet


def table(path: str, columns: dict[str, object], rows_of_a_group: int = 6) -> None:
    parquet.write_table(pa.table(columns), path, row_group_size=rows_of_a_group)


def test_parquet_with_bytes_is_read_by_row_group(tmp_path: Path) -> None:
    table("t.parquet", {"id": list(BYTES), "image": list(BYTES.values()), "label": [0] * 20})
    assert contents("t.parquet") == BYTES
    assert [entry.place for entry in sources.listed("t.parquet")][7] == Cell(str(tmp_path / "t.parquet"), 1, 1, "image")


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"from a file")
    images = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "beside.jpg"}, {"bytes": None, "path": None}]
    table("t.parquet", {"image": images, "label": [1, 2, 3]})
    entries = list(sources.listed("t.parquet"))
    assert [entry.id for entry in entries] == ["t.parquet!0", "t.parquet!1", "t.parquet!2"]
    assert [sources.read(entry) for entry in entries[:2]] == [b"one", b"from a file"]
    with pytest.raises(BadImage, match="the row has no image"):
        sources.read(entries[2])


def test_parquet_with_paths_is_relative_to_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "data", ["1.jpg", "2.jpg"])
    table("data/t.parquet", {"path": ["1.jpg", "2.jpg"]})
    assert contents("data/t.parquet") == {"1.jpg": b"1.jpg", "2.jpg": b"2.jpg"}


def test_columns_of_parquet_are_chosen_by_their_names() -> None:
    table("t.parquet", {"key": [7, 8], "photo": [b"p", b"q"], "thumb": [b"t", b"u"], "path": ["x", "y"]})
    assert contents("t.parquet", column="photo") == {"x": b"p", "y": b"q"}
    assert contents("t.parquet", column="thumb", id_column="key") == {"7": b"t", "8": b"u"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "'t.parquet' has no column 'image', but key, photo, thumb: name that of the images"),
        ({"column": "jpg"}, "'t.parquet' has no column 'jpg', but key, photo, thumb"),
        ({"column": "key"}, "column 'key' of 't.parquet' is double, want bytes, paths, or a struct with bytes"),
        ({"column": "photo", "id_column": "name"}, "'t.parquet' has no column 'name', but key, photo, thumb"),
        ({"column": "photo", "id_column": "key"}, "column 'key' of 't.parquet' is double, want text or integers"),
    ],
)
def test_parquet_without_the_column_names_those_it_has(options: dict[str, str], wanted: str) -> None:
    table("t.parquet", {"key": [1.0], "photo": [b"p"], "thumb": [b"t"]})
    assert refusal("t.parquet", **options) == wanted


def test_a_folder_of_parquet_files_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    table("out/part-1.parquet", {"image": [b"3"]})
    table("out/part-0.parquet", {"image": [b"1", b"2"]})
    wanted = {"out/part-0.parquet!0": b"1", "out/part-0.parquet!1": b"2", "out/part-1.parquet!0": b"3"}
    assert contents("out") == contents("out/*.parquet") == wanted


def test_a_table_beside_images_is_not_a_second_copy_of_them(tmp_path: Path) -> None:
    write(tmp_path / "photos", ["a.jpg"])
    table("photos/metadata.parquet", {"file_name": ["a.jpg"]})
    assert ids("photos") == ["photos/a.jpg"]


def test_a_broken_parquet_file_is_one_line(tmp_path: Path) -> None:
    table("t.parquet", {"image": [b"1", b"2"]})
    whole = (tmp_path / "t.parquet").read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "t.parquet").write_bytes(whole[:size])
        assert "Parquet file 't.parquet' cannot be read" in refusal("t.parquet")


def test_a_row_group_larger_than_memory_is_read_through_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquets, "_MOST_KEPT", (64, 1 << 30))
    table("t.parquet", {"image": [str(row).encode() for row in range(3000)]}, rows_of_a_group=3000)
    entries = list(sources.listed("t.parquet"))
    order = [*range(0, 3000, 7), 2999, 0, 1500, 1400]  # also back
    assert [sources.read(entries[row]) for row in order] == [str(row).encode() for row in order]
    place = entries[0].place
    assert isinstance(place, Cell)
    with pytest.raises(BadImage, match="it has 3000 rows"):
        parquets.read(place._replace(row=3000))


# Lists


def test_a_csv_file_names_images_relative_to_itself(tmp_path: Path) -> None:
    write(tmp_path / "data", ["1.jpg", "2.jpg", "odd"])
    Path("data/list.csv").write_text('\ufeffid,path,label\nx,1.jpg,cat\n\ny,"2.jpg",dog\nz,odd,?\n')
    assert contents("data/list.csv") == {"x": b"1.jpg", "y": b"2.jpg", "z": b"odd"}
    assert ids("data/list.csv", column="path", id_column="path") == ["1.jpg", "2.jpg", "odd"]


def test_a_csv_file_without_a_header_has_paths_in_its_first_column(tmp_path: Path) -> None:
    write(tmp_path, ["1.jpg", "2.jpg"])
    Path("list.csv").write_text("1.jpg,cat\n2.jpg,dog\n")
    Path("list.tsv").write_text("1.jpg\tcat\n2.jpg\tdog\n")
    assert contents("list.csv") == contents("list.tsv") == {"1.jpg": b"1.jpg", "2.jpg": b"2.jpg"}


def test_faults_of_a_csv_file_are_one_line() -> None:
    Path("list.csv").write_text("id,path\nx\n")
    assert refusal("list.csv") == "line 2 of 'list.csv' ends before column 2"
    assert refusal("list.csv", column="file") == "'list.csv' has no column 'file', but id, path"
    Path("list.csv").write_bytes(b"path\na\0b\n" + b"x" * 200_000)
    assert "'list.csv' cannot be read" in refusal("list.csv")


def test_a_file_that_cannot_be_opened_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("list.csv", "shard.tar"):
        Path(name).touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        assert refusal("list.csv") == "'list.csv' cannot be read: Permission denied"
        assert refusal("shard.tar") == "'shard.tar' cannot be read: Permission denied"


def test_ids_that_are_no_utf_8_in_a_parquet_file_are_one_line() -> None:
    names = pa.array([b"caf\xe9", b"b"]).view(pa.string())
    table("t.parquet", {"id": names, "image": [b"1", b"2"]})
    assert "Parquet file 't.parquet' cannot be read" in refusal("t.parquet")


def given(data: bytes, then: str) -> subprocess.CompletedProcess[bytes]:
    program = f"from convoy.service.scoring.sources import listed, read\n{then}"
    return subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True, timeout=120)


def test_paths_on_standard_input_may_end_in_zero_bytes_and_be_listed_twice() -> None:
    show = "for _ in range(2): print(*(entry.id for entry in listed('-')), sep='|')"
    assert given(b"a b.jpg\r\n\nc\xe9.jpg", show).stdout == b"a b.jpg|c\\xe9.jpg\n" * 2
    assert given(b"a\nb.jpg\0c.jpg\0", show).stdout == b"a\nb.jpg|c.jpg\n" * 2


# Ids


def test_an_id_that_is_there_twice_is_one_line_with_both_places(tmp_path: Path) -> None:
    Path("list.csv").write_text("id,path\n" + "".join(f"{n},{n}.jpg\n" for n in range(20_000)) + "17,again.jpg\n")
    message = refusal("list.csv")
    assert message == (f"id '17' is there twice, want unique ones: '{tmp_path}/17.jpg' and '{tmp_path}/again.jpg'")
    with tarfile.open("twice.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.jpg"))
    assert refusal("twice.tar").endswith(f"byte 512 of '{tmp_path}/twice.tar' and byte 1024 of '{tmp_path}/twice.tar'")


def test_two_ids_with_the_same_hash_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "hash", lambda _: 5, raising=False)
    Path("list.csv").write_text("path\n" + "".join(f"{n}.jpg\n" for n in range(50)))
    assert ids("list.csv") == [f"{n}.jpg" for n in range(50)]


def test_ids_of_a_million_entries_need_8_bytes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = sources._Hashes()
    assert not any(hashes.add(sources.np.arange(start, start + 8192)) for start in range(0, 1_000_000, 8192))
    assert hashes.add(sources.np.array([3, 2_000_000, 2_000_000])) == [0, 2]
    assert sum(run.nbytes for run in hashes._runs) < 8_100_000
    assert len(hashes._runs) < 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: write(Path("s"), BYTES),
        lambda: (Path("s").mkdir(), packed(Path("s/a.tar"), BYTES)),
        lambda: (Path("s").mkdir(), table("s/a.parquet", {"image": list(BYTES.values())})),
    ],
    ids=["files", "tar", "parquet"],
)
def test_places_are_the_same_in_every_working_directory(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    entries = list(sources.listed("s"))
    monkeypatch.chdir("/")
    assert len([sources.read(entry) for entry in entries]) == 20


def test_what_is_no_file_of_its_own_is_a_row_with_an_error() -> None:
    with pytest.raises(BadImage, match="why"):
        sources.read(Entry("x", Refused("why")))
    with pytest.raises(FileNotFoundError):
        sources.read(Entry("x", Member("/nowhere.tar", 0, 1)))


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table("t.parquet", {"image": [b"1"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert refusal("t.parquet") == "Parquet needs pyarrow: pip install 'convoy[score]'"
