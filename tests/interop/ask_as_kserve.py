"""Asks a server with KServe's own SDK and prints, as JSON, what it was told.

Run by the Python of an environment that has kserve, and nothing of Convoy: `python ask_as_kserve.py HTTP GRPC`, a URL
and HOST:PORT. The server has the model `letters`, which takes uint8 (n, 8, 8, 1).
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

PIXELS = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)


async def main(http: str, grpc: str) -> None:
    told: dict[str, Any] = {}
    second = InferenceRESTClient(RESTConfig(protocol="v2"))
    told["v2 up"] = [
        await second.is_server_live(http),
        await second.is_server_ready(http),
        await second.is_model_ready(http, "letters"),
    ]
    for binary in (True, False):
        answer = await second.infer(http, InferRequest("letters", [pixels(binary)]), model_name="letters")
        told[f"v2 {'binary' if binary else 'json'}"] = probabilities(answer)
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    told["v1 up"] = [await first.is_model_ready(http, "letters")]
    answer = await first.infer(http, {"instances": PIXELS.tolist()}, model_name="letters")
    told["v1"] = answer["predictions"][0]
    other = InferenceGRPCClient(grpc)
    told["grpc up"] = [
        await other.is_server_live(),
        await other.is_server_ready(),
        await other.is_model_ready("letters"),
    ]
    told["grpc"] = probabilities(await other.infer(InferRequest("letters", [pixels(True)])))
    print(json.dumps(told))


def pixels(binary: bool) -> InferInput:
    tensor = InferInput("image", list(PIXELS.shape), "UINT8")
    tensor.set_data_from_numpy(PIXELS, binary_data=binary)
    return tensor


def probabilities(answer: Any) -> list[float]:
    return [float(value) for value in answer.outputs[0].as_numpy()[0]]


asyncio.run(main(*sys.argv[1:]))
