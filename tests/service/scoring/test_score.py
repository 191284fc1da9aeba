"""`Score`: the rows of a batch, in this process and by a server."""

import copyreg
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.errors import BadConfig, BadModelFile, ConvoyError, UnknownModel
from convoy.service.scoring import columns, network, score
from convoy.service.scoring.score import Score
from tests.service import networks
from tests.service.running import Server
from tests.service.scoring.conftest import pictures, png

COUNT = 80


@pytest.fixture(scope="module")
def server(scoring_models: Path) -> Iterator[Server]:
    with Server(scoring_models, ["server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return pictures(COUNT)


def batch_of(files: list[bytes], first: int = 0) -> dict[str, list[Any]]:
    return {"id": [f"picture {first + number}" for number in range(len(files))], "bytes": files}


def rows_of(result: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(result, values, strict=True)) for values in zip(*result.values(), strict=True)]


def test_labels_of_a_file_equal_those_of_a_server(server: Server, classifier_file: str, files: list[bytes]) -> None:
    rows = rows_of(Score(classifier_file, top_k=3)(batch_of(files)))
    with Client(server.grpc) as client:
        answers = client.classify_many(files, "classes", top_k=3)
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, ServerError):
            assert row["error"] == answer.message
            assert row["labels"] is row["indices"] is row["probabilities"] is None
            continue
        assert row["error"] is None
        assert row["labels"] == [label.name for label in answer.labels]
        assert row["indices"] == [label.index for label in answer.labels]
        # Batches of other sizes differ in the last place.
        assert row["probabilities"] == pytest.approx([label.probability for label in answer.labels], rel=1e-6)
    assert sum(isinstance(answer, ServerError) for answer in answers) == COUNT // 16


@pytest.mark.parametrize("masks", ["rle", "png"])
def test_masks_of_a_file_equal_those_of_a_server(
    server: Server, segmenter_file: str, files: list[bytes], masks: columns.Masks
) -> None:
    rows = rows_of(Score(segmenter_file, masks=masks)(batch_of(files)))
    with Client(server.grpc) as client:
        answers = client.segment_many(files, "masks")
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, ServerError):
            assert row["error"] == answer.message
            assert row["mask"] is row["areas"] is None
            continue
        if masks == "rle":
            mask = columns.class_map(row)
        else:
            picture = PIL.Image.open(io.BytesIO(row["mask"]))
            assert picture.mode == "P"
            mask = np.asarray(picture)
        assert np.array_equal(mask, answer.mask)
        assert (row["height"], row["width"]) == answer.mask.shape
        assert row["areas"] == [each.pixels for each in answer.class_pixels]


@pytest.mark.parametrize("name", ["classes", "masks"])
def test_a_server_scores_the_same_rows_and_says_which_version(
    server: Server, scoring_models: Path, files: list[bytes], name: str
) -> None:
    asked = Score(f"{name}@{server.grpc}")
    by_server = asked(batch_of(files))
    by_file = Score(str(scoring_models / name / "1" / "model.onnx"))(batch_of(files))
    assert set(by_server.pop("model")) == {name}
    assert set(by_server.pop("version")) == {1}
    del by_file["sha256"]
    for column, values in by_file.items():
        if column == "probabilities":
            for one, other in zip(values, by_server[column], strict=True):
                assert one == (other if other is None else pytest.approx(other, rel=1e-6))
        else:
            assert by_server[column] == values, column
    assert asked.settled().options.version == 1
    assert server.total("convoy_images_total", model=name) > 0


def test_a_table_has_the_schema_also_where_every_image_is_broken(classifier_file: str, segmenter_file: str) -> None:
    for file in (classifier_file, segmenter_file):
        scorer = Score(file)
        table = scorer.table(batch_of([b"broken"]))
        assert table.schema.equals(scorer.schema(), check_metadata=True)
        assert table.schema.names[0] == "id"
        assert table.schema.names[-1] == "error"
        assert table.schema.names[1] == "sha256"
        assert table["sha256"].to_pylist() == [network.sha256(Path(file))]
        assert table["error"].to_pylist() == ["image starts with the bytes 62 72 6f 6b 65 6e, want JPEG or PNG"]
    assert b'"task":"segmentation"' in scorer.schema().metadata[b"convoy"]


def test_given_errors_and_missing_bytes_are_rows(classifier_file: str) -> None:
    good = png(np.zeros((16, 16, 3), np.uint8))
    scorer = Score(classifier_file)
    result = scorer(
        {"id": ["a", "b", "c", "d"], "bytes": [None, good, None, good], "error": ["cannot be read", None, None, None]}
    )
    assert result["error"] == ["cannot be read", None, "image is missing", None]
    assert [labels is None for labels in result["labels"]] == [True, False, True, False]
    assert scorer({"id": [], "bytes": []})["id"] == []


def test_frames_of_pandas_with_their_own_nulls_are_batches(classifier_file: str) -> None:
    good = png(np.zeros((16, 16, 3), np.uint8))
    frame = pd.DataFrame({"id": ["a", "b"], "bytes": [good, b""], "error": [float("nan"), pd.NA]})
    scored = pd.DataFrame(Score(classifier_file)(frame))
    assert scored["error"].isna().tolist() == [True, False]
    table = pyarrow.Table.from_pandas(scored, schema=Score(classifier_file).schema(), preserve_index=False)
    assert table["id"].to_pylist() == ["a", "b"]


def test_pictures_that_no_server_decodes_are_converted_as_a_client_does(classifier_file: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "TIFF")
    result = Score(classifier_file)(batch_of([png(pixels), file.getvalue(), file.getvalue()[:200]]))
    assert result["probabilities"][0] == result["probabilities"][1]
    assert result["error"][:2] == [None, None]
    assert result["error"][2] is not None


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answers_do_not_depend_on_their_batch(segmenter_file: str, files: list[bytes], batch_size: int) -> None:
    whole = Score(segmenter_file)(batch_of(files))
    scorer = Score(segmenter_file, batch_size=batch_size)
    pieces = [scorer(batch_of(files[first : first + 7], first)) for first in range(0, COUNT, 7)]
    for column, values in whole.items():
        assert [value for piece in pieces for value in piece[column]] == values


def test_the_same_images_in_the_same_order_have_the_same_bits(classifier_file: str, files: list[bytes]) -> None:
    scorer = Score(classifier_file, batch_size=8)
    first = scorer(batch_of(files))
    for _ in range(5):
        assert scorer(batch_of(files)) == first


def test_of_a_run_that_fails_only_the_images_fail_that_fail_alone(
    classifier_file: str, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Score(classifier_file, batch_size=4, top_k=2)
    backend = scorer.open()
    assert isinstance(backend, network.Network)
    before = scorer(batch_of(files))
    for instance in backend._instances.all:
        run = instance.session.run

        def failing(arrays: Any, rooms: Any = (), run: Any = run) -> Any:
            if any(image.max() == image.min() == 77 for image in arrays[0]):
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no memory")
            return run(arrays, rooms)

        monkeypatch.setattr(instance.session, "run", failing)
    bad = png(np.full((16, 16, 3), 77, np.uint8))
    result = scorer({"id": ["bad", *map(str, range(COUNT))], "bytes": [bad, *files]})
    assert result["error"][0] == "the network failed: no memory"
    assert result["error"][1:] == before["error"]
    assert result["labels"][1:] == before["labels"]


def test_it_travels_to_other_processes_before_and_after_it_has_opened_its_model(classifier_file: str) -> None:
    scorer = Score(classifier_file, top_k=2)
    for _ in range(2):
        # What every way of sending an object does with it.
        make, arguments, state = scorer.__reduce_ex__(2)[:3]
        assert make is copyreg.__newobj__  # type: ignore[attr-defined]
        assert isinstance(state, dict)
        assert set(state) == {"options"}
        twin = make(*arguments)
        twin.__dict__.update(state)
        assert twin.open() is scorer.open()
    # The settled one is the same model, not a second copy of the weights.
    assert scorer.settled().open() is scorer.open()
    assert scorer.settled().options.batch_size >= 1


def test_a_model_is_opened_once_by_any_number_of_threads(classifier_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    opened = []
    real = score._open
    monkeypatch.setattr(score, "_open", lambda options: opened.append(options) or real(options))
    scorer = Score(classifier_file, top_k=4)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(lambda _: scorer.open(), range(16))))) == 1
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("network_of", "why"),
    [
        (networks.doubler, "does not describe itself: convoy adopt writes what it lacks"),
        (networks.brightest_pixel, "is for templates in pictures, want classification or segmentation of images"),
        (networks.waves, "is for tensors that are no images, want classification or segmentation of images"),
    ],
)
def test_models_that_take_no_images_are_refused(tmp_path: Path, network_of: Any, why: str) -> None:
    networks.save(network_of(), tmp_path, "other")
    with pytest.raises(BadModelFile) as refused:
        Score(str(tmp_path / "other" / "1" / "model.onnx")).schema()
    assert refused.value.message.endswith(why)


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, server: Server) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for model, kind, why in [
        (str(tmp_path), BadConfig, "is a folder, want the .onnx file in it"),
        (str(tmp_path / "none.onnx"), BadConfig, "does not exist, want an .onnx file, or NAME@HOST:PORT"),
        (str(broken), BadModelFile, "onnxruntime cannot load it"),
        (f"clases@{server.grpc}", UnknownModel, "did you mean 'classes'?"),
        ("classes@host:x", BadConfig, "want HOST:PORT"),
    ]:
        with pytest.raises(ConvoyError) as refused:
            Score(model).schema()
        assert isinstance(refused.value, kind)
        assert why in refused.value.message
        assert "\n" not in refused.value.message


def test_options_out_of_range_are_refused(classifier_file: str) -> None:
    with pytest.raises(BadConfig, match="top_k is 0, want 1 or more"):
        Score(classifier_file, top_k=0)
    with pytest.raises(BadConfig, match="masks are 'raw', want rle or png"):
        Score(classifier_file, masks="raw")  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="provider is 'tpu', want auto, cpu or cuda"):
        Score(classifier_file, provider="tpu").open()
