"""What users install and import: one package, whose client needs nothing of the server."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from setuptools import find_packages

import convoy
from convoy.service import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OF_THE_SERVER = ("uvloop", "prometheus_client", "simplejpeg", "watchfiles", "grpc_reflection", "onnxruntime", "torch")


def python(*words: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *words]
    settings = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=settings)


def without(*modules: str) -> str:
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in modules)


def test_one_name_is_installed() -> None:
    packages = find_packages(str(ROOT), **PROJECT["tool"]["setuptools"]["packages"]["find"])
    assert {package.partition(".")[0] for package in packages} == {"convoy"}
    folders = {file.parent.relative_to(ROOT) for top in ("service", "models") for file in ROOT.glob(f"{top}/**/*.py")}
    assert {f"convoy.{'.'.join(folder.parts)}" for folder in folders} | {"convoy"} == set(packages)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's own project, which has a module and a package of the names that our folders have."""
    (tmp_path / "service.py").write_text("MINE = 'my service'\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("MINE = 'my models'\n")
    (tmp_path / "ask.py").write_text(
        "import convoy, models, service\n"
        "print(service.MINE, models.MINE, convoy.Client.__name__, convoy.ServerError.__name__)\n"
    )
    return tmp_path


def test_users_own_modules_and_ours_live_together(project: Path) -> None:
    done = python("ask.py", folder=project, PYTHONPATH=f"{project}:{ROOT}")
    assert (done.stdout, done.stderr) == ("my service my models Client ServerError\n", "")


@pytest.mark.parametrize("words", [["-m", "convoy"], [str(Path(sys.executable).with_name("convoy"))]])
def test_command_runs_where_a_project_has_modules_of_such_names(project: Path, words: list[str]) -> None:
    done = python(*words, "--version", folder=project, PYTHONPATH=f"{project}:{ROOT}")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "convoy", "")


def test_every_name_of_the_package_is_there_and_no_other() -> None:
    for name in convoy.__all__:
        assert getattr(convoy, name) is not None
    assert set(dir(convoy)) == set(convoy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = convoy.Klient  # type: ignore[attr-defined]


def test_importing_the_package_loads_neither_grpc_nor_numpy(tmp_path: Path) -> None:
    done = python("-c", "import sys, convoy; print({'grpc', 'numpy'} & set(sys.modules))", folder=ROOT)
    assert done.stdout == "set()\n"


def test_client_needs_no_package_of_the_server() -> None:
    code = without(*OF_THE_SERVER) + "import convoy\n[getattr(convoy, name) for name in convoy.__all__]\n"
    code += "from convoy.service import cli\nsys.exit(cli.run(['classify', '--help']))"
    done = python("-c", code, folder=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_server_without_its_packages_says_what_to_install() -> None:
    said = "needs the packages of the server: install convoy[cpu] or convoy[cuda]\n"
    for command in ("serve", "profile"):
        code = without("uvloop", "onnxruntime", "prometheus_client")
        code += f"sys.argv = ['convoy', {command!r}, 'x']\nfrom convoy.service.cli import main\nmain()"
        done = python("-c", code, folder=ROOT)
        assert (done.returncode, done.stderr) == (2, f"convoy {command}: {said}")


def test_packages_that_are_missing_are_named_as_they_are_imported() -> None:
    for name in cli._SERVER:
        import_module(name)
