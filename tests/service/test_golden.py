"""The example in a file: it shows a damaged file, and a device that computes something else."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from convoy.models.export.seal import sealed
from convoy.service import golden, metadata
from convoy.service.engine import session as sessions
from convoy.service.engine.session import check_example, check_seal, load
from convoy.service.errors import BadModelFile
from tests.service import networks

NETWORKS = {
    "classifier": networks.classifier,
    "segmenter": networks.segmenter,
    "segmenter without confidence": lambda: networks.segmenter(confidence=False),
    "waves": networks.waves,
}


def save(data: bytes, folder: Path) -> Path:
    return networks.save_bytes(data, folder, "sealed")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_sealed_file_loads_and_its_example_gets_the_recorded_answer(tmp_path: Path, network: object) -> None:
    assert callable(network)
    file = save(sealed(network()), tmp_path)
    session = load(file, "cpu", 0, 1)
    assert session.golden is not None
    assert check_example(session) == ""
    check_seal(session, file)


def test_file_without_an_example_loads_as_before(tmp_path: Path) -> None:
    file = networks.save(networks.classifier(), tmp_path, "letters")
    session = load(file, "cpu", 0, 1)
    assert session.golden is None
    assert check_example(session) == ""
    check_seal(session, file)


def test_every_flipped_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    data = sealed(networks.classifier())
    begin = data.index(networks.classifier_weights().tobytes())
    for place in np.random.default_rng(1).integers(0, 8 * 64 * 10 * 4, 40).tolist():
        flipped = bytearray(data)
        flipped[begin + place // 8] ^= 1 << place % 8
        file = save(bytes(flipped), tmp_path)
        with pytest.raises(BadModelFile, match=r"example gets another answer|is not the one that was exported"):
            check_seal(load(file, "cpu", 0, 1), file)


@pytest.mark.parametrize("network", [networks.classifier, networks.waves])
def test_other_weights_get_another_answer(tmp_path: Path, network: object) -> None:
    """The seal aside: as a device would that computes something else."""
    assert callable(network)
    model = network()
    sealed(model)  # its properties are the file's
    if network is networks.classifier:
        weights = networks.classifier_weights()[:, ::-1]
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights), "weights"))
    else:
        model.graph.node[-1].attribute[0].i = 0  # softmax over the rows
    with pytest.raises(BadModelFile, match=r"gets another answer on CPUExecutionProvider than at export: value"):
        load(networks.save(model, tmp_path, "other"), "cpu", 0, 1)


def example() -> tuple[golden.Golden, Mapping[str, NDArray[np.generic]]]:
    model = networks.classifier()
    running = onnxruntime.InferenceSession(model.SerializeToString())
    document = metadata.decode({entry.key: entry.value for entry in model.metadata_props})
    assert document is not None

    def run(values: NDArray[np.generic]) -> Mapping[str, NDArray[np.generic]]:
        return {"probabilities": running.run(None, {"image": values})[0]}

    made = golden.measure(run, document, (8, 8, 1))
    return made, run(golden.input_of(made, "uint8"))


@pytest.mark.parametrize("harm", ["nan", "zeros", "permuted", "none", "short"])
def test_wrong_answers_differ(harm: str) -> None:
    made, outputs = example()
    right = outputs["probabilities"]
    wrong = {
        "nan": np.full_like(right, np.nan),
        "zeros": np.zeros_like(right),
        "permuted": np.roll(right, 1, axis=1),
        "none": np.empty(0, np.float32),
        "short": right[:, :4],
    }[harm]
    assert golden.difference(made, {"probabilities": wrong})
    assert golden.difference(made, {})


def test_rounding_makes_no_difference() -> None:
    made, outputs = example()
    noise = np.random.default_rng(1).uniform(0.99, 1.01, outputs["probabilities"].shape)
    assert golden.difference(made, {"probabilities": outputs["probabilities"] * noise}) == ""


def test_example_is_one_about_which_the_network_is_unsure() -> None:
    _, outputs = example()
    assert outputs["probabilities"].max() < 0.5


def test_input_is_the_same_on_every_machine() -> None:
    made = golden.Golden(seed=1, shape=(9, 10, 3), low=96, high=160, block=8, outputs={})
    values = golden.input_of(made, "uint8")
    assert values.shape == (1, 9, 10, 3)
    assert (values.min() >= 96, values.max() <= 160) == (True, True)
    assert (values[0, :8, :8] == values[0, 0, 0]).all()
    assert values[0, 0, 0].tolist() == [135, 150, 138]
    floats = golden.input_of(made, "float32")
    assert (floats.dtype, floats.shape) == (np.dtype("float32"), (1, 9, 10, 3))


def test_damaged_example_is_an_error(tmp_path: Path) -> None:
    model = networks.classifier()
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**properties, golden.KEY: '{"seed": "one"}'})
    with pytest.raises(Exception, match=r"example 'convoy\.golden'"):
        load(networks.save(model, tmp_path, "letters"), "cpu", 0, 1)


def test_check_of_a_running_session_finds_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = load(save(sealed(networks.classifier()), tmp_path), "cpu", 0, 1)
    real = sessions.Session.run
    monkeypatch.setattr(sessions.Session, "run", lambda self, arrays: [values * 0.5 for values in real(self, arrays)])
    assert "want" in check_example(session)
