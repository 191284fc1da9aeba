"""A client nobody here wrote: tritonclient against a running server, its answers against offline onnxruntime."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

TALK = Path(__file__).with_name("talk.py")
DIGITS = 64

pytestmark = pytest.mark.trained


def offline(repository: Path, model: str) -> onnxruntime.InferenceSession:
    versions = [int(folder.name) for folder in (repository / model).iterdir() if folder.name.isdigit()]
    file = repository / model / str(max(versions)) / "model.onnx"
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def images(server: Any) -> dict[str, NDArray[np.uint8]]:
    # Noise with an edge in it: answers that differ from image to image, so that a swapped one is seen.
    random = np.random.default_rng(7)
    digits = random.integers(0, 256, (DIGITS, 32, 32, 1), dtype=np.uint8)
    for number, digit in enumerate(digits):
        digit[:, : number % 32] = 0
    channels = offline(server.repository, "unet").get_inputs()[0].shape[3]
    scene = random.integers(0, 256, (1, 64, 96, channels), dtype=np.uint8)
    return {"digits": digits, "scene": scene}


@pytest.fixture(scope="module")
def told(
    server: Any,
    tritonclient_python: Path,
    images: dict[str, NDArray[np.uint8]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What tritonclient was told, as `talk.py` prints it."""
    file = tmp_path_factory.mktemp("interop") / "images.npz"
    np.savez(file, **images)
    done = subprocess.run(
        [tritonclient_python, TALK, server.grpc, file], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def probabilities(server: Any, images: dict[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
    """(DIGITS, 10): what onnxruntime says without a server."""
    (answer,) = offline(server.repository, "lenet5").run(["probabilities"], {"image": images["digits"]})
    assert len(np.unique(answer.round(4), axis=0)) > DIGITS // 2, "images that look alike would hide swapped answers"
    return np.asarray(answer)


def test_server_and_models_are_live_and_ready(told: dict[str, Any]) -> None:
    assert told["live"]
    assert told["ready"]
    assert told["model ready"] == {"lenet5": True, "unet": True, "nobody": False}


def test_server_metadata_names_the_server_and_only_what_it_offers(told: dict[str, Any]) -> None:
    metadata = told["server metadata"]
    assert metadata["name"]
    assert metadata["version"]
    offered = set(metadata.get("extensions", []))
    assert offered >= {"classification", "model_configuration", "statistics"}
    assert not offered & {"sequence", "trace", "logging", "cuda_shared_memory"}


def test_metadata_says_what_the_model_takes_and_gives(told: dict[str, Any]) -> None:
    metadata = told["metadata"]["lenet5"]
    assert metadata["name"] == "lenet5"
    assert metadata["versions"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "32", "32", "1"]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]}]
    outputs = {output["name"]: output for output in told["metadata"]["unet"]["outputs"]}
    assert outputs["mask"] == {"name": "mask", "datatype": "UINT8", "shape": ["-1", "-1", "-1"]}


@pytest.mark.parametrize("model", ["lenet5", "unet"])
def test_config_agrees_with_metadata(told: dict[str, Any], model: str) -> None:
    config, metadata = told["config"][model]["config"], told["metadata"][model]
    assert config["name"] == model
    assert config["max_batch_size"] >= 8
    for kind in ("input", "output"):
        # With a batch size, the configuration's dims leave the batch out.
        configured = {tensor["name"]: (tensor["data_type"], tensor["dims"]) for tensor in config[kind]}
        described = {tensor["name"]: (tensor["datatype"], tensor["shape"][1:]) for tensor in metadata[f"{kind}s"]}
        assert {name: dims for name, (_, dims) in configured.items()} == {
            name: shape for name, (_, shape) in described.items()
        }
        assert {name: data_type.removeprefix("TYPE_") for name, (data_type, _) in configured.items()} == {
            name: datatype for name, (datatype, _) in described.items()
        }


@pytest.mark.parametrize("size", ["1", "8"])
def test_inferred_probabilities_are_those_of_offline_onnxruntime(
    told: dict[str, Any], probabilities: NDArray[np.float32], size: str
) -> None:
    np.testing.assert_allclose(told["infer"][size], probabilities, rtol=0, atol=1e-5)


def test_requests_sent_at_once_each_get_their_own_answer(
    told: dict[str, Any], probabilities: NDArray[np.float32]
) -> None:
    np.testing.assert_allclose(told["async"], probabilities, rtol=0, atol=1e-5)


def test_classification_output_ranks_the_labels(told: dict[str, Any], probabilities: NDArray[np.float32]) -> None:
    assert len(told["ranked"]) == 8
    for entries, row in zip(told["ranked"], probabilities, strict=False):
        values, indices, labels = zip(*(entry.split(":") for entry in entries), strict=True)
        best = np.sort(row)[::-1][:3]
        np.testing.assert_allclose([float(value) for value in values], best, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row[[int(index) for index in indices]], best, rtol=0, atol=1e-5)
        assert labels == indices, "the ten digits are their own names"


def test_mask_and_confidence_are_those_of_offline_onnxruntime(
    server: Any, told: dict[str, Any], images: dict[str, NDArray[np.uint8]]
) -> None:
    session = offline(server.repository, "unet")
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, {"image": images["scene"]}), strict=True))
    assert set(told["segment"]) == set(names) >= {"mask", "confidence"}
    assert np.shape(told["segment"]["mask"]) == images["scene"].shape[:3]
    assert np.mean(np.asarray(told["segment"]["mask"]) == expected["mask"]) >= 0.9999
    # One step of 255 is what rounding may turn.
    assert np.max(np.abs(np.asarray(told["segment"]["confidence"]) - expected["confidence"].astype(int))) <= 1


@pytest.mark.parametrize(
    ("case", "status", "named"),
    [
        ("wrong shape", "INVALID_ARGUMENT", "image"),
        ("wrong rank", "INVALID_ARGUMENT", "image"),
        ("wrong dtype", "INVALID_ARGUMENT", "image"),
        ("wrong input", "INVALID_ARGUMENT", "picture"),
        ("wrong output", "INVALID_ARGUMENT", "logits"),
        ("unknown model", "NOT_FOUND", "nobody"),
        ("unknown version", "NOT_FOUND", "999"),
        ("metadata of an unknown model", "NOT_FOUND", "nobody"),
        ("client_timeout", "DEADLINE_EXCEEDED", ""),
    ],
)
def test_refusal_has_a_status_and_names_the_value(told: dict[str, Any], case: str, status: str, named: str) -> None:
    answered, message = told["errors"][case]
    assert answered == f"StatusCode.{status}", message
    assert named in message


def test_statistics_count_what_was_answered(told: dict[str, Any]) -> None:
    before, after = (counted(statistics) for statistics in told["statistics"])
    answered = {name: after[name] - before[name] for name in after}
    assert answered["images"] == 3 * DIGITS + 8  # one by one, by eight, at once; and the ranked ones
    assert answered["requests"] == DIGITS + DIGITS // 8 + DIGITS + 1
    assert 0 < answered["runs"] <= answered["requests"]
    assert answered["run ns"] > 0


def counted(statistics: dict[str, Any]) -> dict[str, int]:
    (model,) = statistics["model_stats"]
    inference = model.get("inference_stats", {})
    # Zeros are left out of the JSON, and 64-bit numbers are texts in it.
    return {
        "images": int(model.get("inference_count", 0)),
        "runs": int(model.get("execution_count", 0)),
        "requests": int(inference.get("success", {}).get("count", 0)),
        "run ns": int(inference.get("compute_infer", {}).get("ns", 0)),
    }
