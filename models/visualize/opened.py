"""The checkpoint that is looked into, by what its network takes."""

from pathlib import Path

from convoy.models import checkpoint, threads
from convoy.models.errors import BadView
from convoy.models.visualize.network import ImageSubject, Subject
from convoy.models.visualize.tensors import TensorSubject


def load(path: Path) -> Subject:
    """The network of a checkpoint. Raises BadCheckpoint; BadView where it takes tensors of which no picture is."""
    threads.limit()
    description, network = checkpoint.load(path)
    kind = ImageSubject if description.input is not None else TensorSubject
    return kind(description.architecture, description, network.requires_grad_(False))


def load_for_images(path: Path) -> ImageSubject:
    """Likewise. Raises BadView where it takes no images."""
    subject = load(path)
    if not isinstance(subject, ImageSubject):
        takes = subject.description.takes
        raise BadView(
            f"{path}: {subject.name} takes {takes}, want a network that takes images; "
            "layers, filters, neurons and class show this one, too"
        )
    return subject
