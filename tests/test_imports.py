"""Imports point one way: what each part of the project may know of the others, and of the large libraries."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Who may import what: a module prefix -> the files (by prefix) that may, all others may not.
ONLY = {
    "torch": ("models/", "tools/"),
    "lightning": ("models/",),
    "onnx": ("models/", "tools/"),
    "sklearn": ("models/",),
    "scipy": ("models/",),
    "convoy.models": ("models/", "tools/"),
    # Imported by these names they would be a second copy, and hide what users call so.
    "models": (),
    "service": (),
    "onnxruntime": (
        "service/engine/session.py",
        "service/engine/providers.py",
        "service/engine/cuda_graphs.py",
        "models/runtime.py",
        "models/export/",
        "tools/network_table.py",
    ),
    "grpc": (
        "service/frontend/transport/grpc_aio.py",
        "service/frontend/transport/choice.py",
        "service/client/",
        "service/commands/server.py",
        "service/bench/",
    ),
    # The raw client of the load generator uses the binding of libnghttp2.
    "convoy.service.frontend": (
        "service/frontend/",
        "service/scoring/",  # answers as a server does, in one process
        "service/bench/http2.py",
        "service/bench/raw_client.py",
        "tools/reference.py",
        "tools/watching/queries.py",
    ),
    "convoy.service.supervisor": (
        "service/supervisor/",
        "service/cli.py",
        "service/commands/check.py",
        "service/commands/configuration.py",
        "service/commands/server.py",
    ),
    "convoy.service.engine": (
        "service/engine/",
        "service/scoring/",
        "service/bench/simulation.py",
        "service/commands/charts.py",
        "service/commands/check.py",
        "service/commands/profile_model.py",
        "service/commands/profile_served.py",
        "service/commands/simulate.py",
    ),
    "uvicorn": ("service/web/",),
    "httptools": ("service/web/",),
    "python_multipart": ("service/frontend/rest/",),
    "cffi": ("service/frontend/transport/nghttp2.py",),
    "hdrh": ("service/bench/",),
    "convoy.service.bench": ("service/bench/", "service/commands/"),
    "convoy.service.monitor": ("service/monitor/", "service/commands/"),
    "torchvision": (),
    "pickle": (),
}


def imports(source: str) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def breaches(file: str, source: str) -> set[str]:
    """The rules that a file's imports break."""
    return {
        f"{file} imports {module}"
        for module in imports(source)
        for prefix, allowed in ONLY.items()
        if (module == prefix or module.startswith(f"{prefix}.")) and not file.startswith(allowed or ("nowhere",))
    }


def sources() -> Iterator[Path]:
    for package in ("service", "models", "tools"):
        yield from (path for path in (ROOT / package).rglob("*.py") if "pb" not in path.relative_to(ROOT).parts)


def test_every_import_points_the_right_way() -> None:
    files = list(sources())
    assert len(files) > 50
    assert not set().union(*(breaches(str(path.relative_to(ROOT)), path.read_text()) for path in files))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("service/metadata.py", "import torch"),
        ("service/engine/scheduler/batcher.py", "from convoy.service.frontend import link"),
        ("service/frontend/engine_client.py", "def late():\n    import onnxruntime"),
        ("service/ipc/slots.py", "import pickle"),
        ("service/frontend/vision.py", "import grpc.aio"),
        ("service/frontend/transport/exchange.py", "from grpc import StatusCode"),
        ("service/client/client.py", "from convoy.models.registry import build"),
        ("models/training/train.py", "from torchvision import transforms"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(file: str, source: str) -> None:
    assert breaches(file, source)


# Sets an environment variable before any module of the package can import torch.
BEFORE_TORCH = ROOT / "models" / "__init__.py"


def test_init_files_hold_a_docstring_and_no_imports() -> None:
    assert imports(BEFORE_TORCH.read_text()) == {"os"}
    for path in sources():
        if path.name == "__init__.py" and path != BEFORE_TORCH:
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path
