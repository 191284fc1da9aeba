"""Opens a checkpoint for visualisation, by its input type."""

from pathlib import Path

from convoy.models import checkpoint, runtime
from convoy.models.errors import BadView
from convoy.models.visualize.network import ImageSubject, Subject
from convoy.models.visualize.tensors import TensorSubject


def load(path: Path) -> Subject:
    """Opens a checkpoint's network. Raises BadCheckpoint; BadView if its tensors cannot be shown as pictures."""
    runtime.limit_threads()
    description, network = checkpoint.load(path)
    kind = ImageSubject if description.input is not None else TensorSubject
    return kind(description.architecture, description, network.requires_grad_(False))


def load_for_images(path: Path) -> ImageSubject:
    """Opens a checkpoint's network. Raises BadCheckpoint; BadView if its input is not an image."""
    subject = load(path)
    if not isinstance(subject, ImageSubject):
        takes = subject.description.takes
        raise BadView(
            f"{path}: {subject.name} takes {takes}, want a network that takes images; "
            "layers, filters, neurons and class show this one, too"
        )
    return subject
