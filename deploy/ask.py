"""Asks a server from outside: an image to every model it lists. Run as `python deploy/ask.py HOST:PORT`."""

import sys

import numpy as np
from numpy.typing import NDArray

from convoy import Client, Model


def main(server: str) -> None:
    """Prints one line a model; fails where a model is not ready, or an answer is not what its task promises."""
    with Client(server) as client:
        models = client.models(deadline=10)
        assert models, "the server lists no model"
        served = {model.model for model in models if model.state == "ready"}
        for model in models:
            # Older versions are listed, too: the highest serves.
            assert model.model in served, f"{model.model} version {model.version} is {model.state}: {model.reason}"
        for model in models:
            if model.state == "ready":
                print(f"{model.model} version {model.version} on {model.provider}: {ask(client, model)}")


def ask(client: Client, model: Model) -> str:
    image = noise(model)
    if model.task == "classification":
        best = client.classify(image, model.model, top_k=len(model.labels), deadline=10).labels
        assert abs(sum(label.probability for label in best) - 1) < 1e-3, "the probabilities do not add up to 1"
        return f"label {best[0].name!r} at {best[0].probability:.2f}"
    if model.task == "segmentation":
        mask = client.segment(image, model.model, deadline=10).mask
        assert mask.shape == image.shape[:2], f"the mask is {mask.shape} for an image of {image.shape}"
        return f"a mask of {mask.shape[0]} x {mask.shape[1]} with {len(np.unique(mask))} classes"
    return "serves plain tensors, not asked"


def noise(model: Model) -> NDArray[np.uint8]:
    """(H, W, channels) uint8, at the model's size, or one that a model of any size has to pad."""
    height, width = model.input.height or 45, model.input.width or 70
    channels = 3 if model.input.colour == "RGB" else 1
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


if __name__ == "__main__":
    main(sys.argv[1])
