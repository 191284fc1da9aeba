"""Talks to a server with NVIDIA's tritonclient and prints, as JSON, what it was told.

Run by the Python of an environment that has tritonclient, and nothing of Convoy: `python talk.py HOST:PORT IMAGES.npz`.
`digits` in the file is uint8 (n, 32, 32, 1) for `lenet5`, `scene` uint8 (1, H, W, channels) for `unet`.
"""

import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

SECONDS = 30.0  # for one answer


def main(server: str, file: str) -> None:
    images = np.load(file)
    digits, scene = images["digits"], images["scene"]
    with InferenceServerClient(server) as client:
        before = client.get_inference_statistics("lenet5", as_json=True)
        answers: dict[str, Any] = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": {name: client.is_model_ready(name) for name in ("lenet5", "unet", "nobody")},
            "server metadata": client.get_server_metadata(as_json=True),
            "metadata": {name: client.get_model_metadata(name, as_json=True) for name in ("lenet5", "unet")},
            "config": {name: client.get_model_config(name, as_json=True) for name in ("lenet5", "unet")},
            "infer": {size: classify(client, digits, size) for size in (1, 8)},
            "async": classify_at_once(client, digits),
            "ranked": rank(client, digits[:8]),
            "segment": segment(client, scene),
        }
        # Failures come after: the statistics' difference is of what was answered, failures counted apart.
        answers["errors"] = errors(client, digits[:1])
        after = client.get_inference_statistics("lenet5", as_json=True)
        answers["statistics"] = [before, after]
    print(json.dumps(answers))


def tensor(values: NDArray[Any], name: str = "image") -> InferInput:
    given = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    given.set_data_from_numpy(values)
    return given


def classify(client: InferenceServerClient, digits: NDArray[np.uint8], size: int) -> list[list[float]]:
    """The probabilities of each image, `size` images in a request."""
    wanted = [InferRequestedOutput("probabilities")]
    rows: list[list[float]] = []
    for start in range(0, len(digits), size):
        result = client.infer("lenet5", [tensor(digits[start : start + size])], outputs=wanted, client_timeout=SECONDS)
        rows += result.as_numpy("probabilities").tolist()
    return rows


def classify_at_once(client: InferenceServerClient, digits: NDArray[np.uint8]) -> list[list[float]]:
    """The probabilities of each image, a request each, all of them sent before the first answer is looked at."""
    answered: queue.Queue[tuple[int, InferResult | None, InferenceServerException | None]] = queue.Queue()

    def keep(number: int) -> Callable[..., None]:
        return lambda result, error: answered.put((number, result, error))

    for number, digit in enumerate(digits):
        client.async_infer("lenet5", [tensor(digit[np.newaxis])], keep(number), request_id=str(number))
    rows: dict[int, list[float]] = {}
    for _ in digits:
        number, result, error = answered.get(timeout=SECONDS)
        if result is None:
            raise SystemExit(f"request {number} failed: {error}")
        assert result.get_response().id == str(number), "an answer with the id of another request"
        rows[number] = result.as_numpy("probabilities")[0].tolist()
    return [rows[number] for number in range(len(digits))]


def rank(client: InferenceServerClient, digits: NDArray[np.uint8]) -> list[list[str]]:
    """The three most probable classes of each image, as `value:index:label`."""
    wanted = [InferRequestedOutput("probabilities", class_count=3)]
    ranked = client.infer("lenet5", [tensor(digits)], outputs=wanted).as_numpy("probabilities")
    return [[entry.decode() for entry in row] for row in ranked]


def segment(client: InferenceServerClient, scene: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """Every output of `unet`: the request names none."""
    result = client.infer("unet", [tensor(scene)], client_timeout=SECONDS)
    return {output.name: result.as_numpy(output.name).tolist() for output in result.get_response().outputs}


def errors(client: InferenceServerClient, digit: NDArray[np.uint8]) -> dict[str, list[str]]:
    """Status and message of each refusal."""
    # 32 MB: sending it takes longer than this call may, so the deadline passes whatever the server does.
    many = np.repeat(digit, 32_768, axis=0)
    requests: dict[str, Callable[[], Any]] = {
        "wrong shape": lambda: client.infer("lenet5", [tensor(digit[:, :31])]),
        "wrong rank": lambda: client.infer("lenet5", [tensor(digit[0])]),
        "wrong dtype": lambda: client.infer("lenet5", [tensor(digit.astype(np.float32))]),
        "wrong input": lambda: client.infer("lenet5", [tensor(digit, name="picture")]),
        "wrong output": lambda: client.infer("lenet5", [tensor(digit)], outputs=[InferRequestedOutput("logits")]),
        "unknown model": lambda: client.infer("nobody", [tensor(digit)]),
        "unknown version": lambda: client.infer("lenet5", [tensor(digit)], model_version="999"),
        "metadata of an unknown model": lambda: client.get_model_metadata("nobody"),
        "client_timeout": lambda: client.infer("lenet5", [tensor(many)], client_timeout=0.001),
    }
    return {name: refusal(request) for name, request in requests.items()}


def refusal(request: Callable[[], Any]) -> list[str]:
    try:
        request()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["answered", ""]


if __name__ == "__main__":
    main(*sys.argv[1:])
