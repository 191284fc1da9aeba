"""What fewer bits bring on this processor: networks with random weights, of which the time does not depend."""

from pathlib import Path

from convoy.models import checkpoint, zoo
from convoy.models.data.batches import loader
from convoy.models.data.builtin.generated import generated
from convoy.models.export import comparison
from convoy.models.export.export import onnx_graph
from convoy.models.export.precision import quantised
from tests.performance.figure import Figure

WANTED = 1.8
CLASSES = 1000


def integers(root: Path, architecture: str) -> Figure:
    """int8 beside fp32, batch by batch in turns: one image, and in batches the least time an image of each."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / f"{architecture}.ckpt"
    zoo.untrained(architecture, file, CLASSES)
    description, network = checkpoint.load(file)
    graph = onnx_graph(description, network)
    images = loader(generated(description.spec), description.spec, batch_size=1)
    small = quantised(graph, ({description.as_tensor.name: batch.images.numpy()} for batch in images), "minmax")
    running = comparison.sessions({"fp32": graph, "int8": small})
    times = comparison.image_times(running, description)
    alone = times["fp32"][1] / times["int8"][1]
    batched = min(times["fp32"].values()) / min(times["int8"].values())
    where = comparison.processor(running) or comparison.provider(running)
    return Figure(
        "int8",
        f"time of an image in fp32, divided by that in int8: {architecture}, random weights",
        f">= {WANTED}",
        f"{alone:.2f} one image, {batched:.2f} in batches; {where}",
        min(alone, batched) >= WANTED,
    )
