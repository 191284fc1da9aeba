"""`make structure`: figures about the source, and the path of a request through the running server.

Reports the number of files and lines, the largest module and class, the number of imports that are renamed because two
classes share a name, and the files that one JPEG passes through in Classify.
"""

import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tools import request_path
from tools.request_path import ROOT, Traced

SMALL = 50  # lines


def modules() -> list[Path]:
    """Returns the library's Python files, without generated ones and `__init__.py`."""
    paths = [path for top in ("service", "models") for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in paths if path.name != "__init__.py" and "pb" not in path.relative_to(ROOT).parts]


def length(path: Path) -> int:
    """Returns the number of lines."""
    return len(path.read_text().splitlines())


def classes(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number of lines and the name of each class in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            yield (node.end_lineno or 0) - node.lineno + 1, f"{path.relative_to(ROOT)} {node.name}"


def homonyms(path: Path) -> Iterator[str]:
    """Yields our classes that a module imports under another name, because two classes share the name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convoy."):
            yield from (
                f"{alias.name} as {alias.asname}" for alias in node.names if alias.asname and alias.name[0].isupper()
            )


def of_a_jpeg() -> list[Traced]:
    """Classifies one JPEG. Returns the calls of the engine and of the front end."""
    # The tests provide the small networks and a server in separate processes.
    from convoy.service.client.client import Client  # noqa: PLC0415
    from tests.service import networks  # noqa: PLC0415
    from tests.service.running import Server  # noqa: PLC0415

    file = io.BytesIO()
    Image.new("L", (8, 8), 90).save(file, "JPEG")
    with request_path.workplace() as name:
        folder = Path(name)
        repository = folder / "repository"
        repository.mkdir()
        networks.save(networks.classifier(), repository, "letters")
        with (
            Server(repository, environment=request_path.environment(folder)) as server,
            Client(server.grpc) as client,
        ):
            for _ in range(5):  # one-time work happens before the trace
                client.classify(file.getvalue())
            server.samples()  # the supervisor, too, has begun to answer
            return request_path.traced(folder, lambda: client.classify(file.getvalue()))


def main() -> None:
    """Prints the figures; with `--calls` also each call of the path."""
    paths = modules()
    sizes = sorted((length(path), str(path.relative_to(ROOT))) for path in paths)
    largest = max(entry for path in paths for entry in classes(path))
    shared = [processes for path in paths for processes in homonyms(path)]
    print(f"modules in service and models       {len(paths)}, {sum(size for size, _ in sizes)} lines")
    print(f"modules under {SMALL} lines             {sum(size < SMALL for size, _ in sizes)}")
    print(f"largest module                      {sizes[-1][0]} lines: {sizes[-1][1]}")
    print(f"largest class                       {largest[0]} lines: {largest[1]}")
    print(f"imports renamed for homonyms        {len(shared)} {', '.join(shared)}")
    processes = of_a_jpeg()
    files = list(dict.fromkeys(file for process in processes for file in process.files))
    print(f"files that a JPEG meets in Classify {len(files)}, {request_path.lines(files)} lines")
    for process in processes:
        again = request_path.returns(process.calls)
        print(f"  one process: {len(process.files)} files, {len(process.calls)} calls, {again} returns to a file left")
        if "--calls" in sys.argv:
            for file, function in process.calls:
                print(f"    {file:48} {function}")


if __name__ == "__main__":
    main()
