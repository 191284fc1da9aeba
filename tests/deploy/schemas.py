"""Strict schemas of what kustomize renders: those of Kubernetes, and those of the custom resources in use.

No package on PyPI or npm has the CRDs of KEDA, the Prometheus operator and KServe as such. Their types are there, made
from the same sources: as TypeScript (npm, MIT) and as the classes of KServe's SDK (PyPI, Apache 2). A schema is read
from these; none of them is imported or installed, and none is committed.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import kubernetes_validate
import pytest
from importlib_resources import files

Schema = dict[str, Any] | bool

KUBERNETES = ("1.30", "1.37")
_CACHE = Path(__file__).parents[2] / ".cache" / "schemas"
_KEDA = ("@kubernetes-models/keda@2.0.0", "825e7b45dfd9da8dfdfd838a6d31e2e180c8491c8e493c3822f9123e49ceffef")
_OPERATOR = (
    "@kubernetes-models/prometheus-operator@6.0.0",
    "e92402ebff400ea1ca5fe60546554841ab6f5986b317f3f0d4cb756dc88fbd37",
)
_KSERVE = ("kserve==0.21.0", "df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b")


def faults(document: dict[str, Any], version: str) -> list[str]:
    """What a strict schema says against a document. A custom resource is judged by its own, and its core parts by those
    of the newest Kubernetes."""
    group = document["apiVersion"].partition("/")[0]
    if group in ("keda.sh", "monitoring.coreos.com", "serving.kserve.io"):
        schema = _custom(group, document["kind"])
        validator = jsonschema.Draft202012Validator(schema)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


@cache
def _custom(group: str, kind: str) -> dict[str, Any]:
    if group == "keda.sh":
        source: _Typed = _Interfaces(_npm(*_KEDA) / "keda.sh" / "v1alpha1")
    elif group == "monitoring.coreos.com":
        source = _Interfaces(_npm(*_OPERATOR) / "monitoring.coreos.com" / "v1")
    else:
        source = _Classes(_wheel(*_KSERVE) / "kserve" / "models")
        kind = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}[kind]
    return {"$ref": source.reference(kind), "$defs": source.definitions}


@cache
def _core() -> dict[str, Schema]:
    """The parts of Kubernetes' own types, by name."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES[-1]}.0-local-strict"
    found: dict[str, Schema] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return found


class _Typed:
    """Schemas made from the types of a package. Unknown keys are faults."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = dict(_core())

    def reference(self, name: str) -> str:
        if name not in self.definitions:
            self.definitions[name] = False  # while it is made: types may contain themselves
            self.definitions[name] = self.make(name)
        return f"#/$defs/{name}"

    def make(self, name: str) -> Schema:
        raise NotImplementedError

    def of_core(self, name: str) -> Schema | None:
        """The schema of a type of Kubernetes, whose name has lost its dots; None if there is none."""
        for each in _core():
            if each.replace(".", "").lower() == name.lower():
                return {"$ref": f"#/$defs/{each}"}
        return None


class _Interfaces(_Typed):
    """The interfaces in .d.ts files, one in each file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def make(self, name: str) -> Schema:
        text = re.sub(r"/\*.*?\*/", "", (self._folder / f"{name}.d.ts").read_text(), flags=re.DOTALL)
        imported = dict(re.findall(r'import \{ (\w+) \} from "([^"]+)"', text))
        alias = re.search(rf"^export type I{name} = (.*?);$", text, re.MULTILINE)
        if alias:
            return self._type(alias[1], imported)
        found = re.search(rf"^export interface I{name}(?: extends ([^{{]+))? \{{\n(.*?)^\}}", text, re.M | re.S)
        assert found is not None, name
        properties: dict[str, Schema] = {}
        required = []
        for key, optional, kind in re.findall(r'^    "([^"]+)"(\??): (.*?);\s*(?=^    "|\Z)', found[2], re.M | re.S):
            properties[key] = self._type(kind, imported)
            if not optional:
                required.append(key)
        for parent in filter(None, (found[1] or "").replace(" ", "").split(",")):
            if parent != "TypeMeta":
                inherited = self.definitions[self._reference(parent, imported).removeprefix("#/$defs/")]
                assert isinstance(inherited, dict)
                properties = inherited["properties"] | properties
                required += inherited["required"]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _type(self, kind: str, imported: dict[str, str]) -> Schema:
        kind = kind.strip()
        if kind in ("string", "number", "boolean"):
            return {"type": kind}
        if words := re.findall(r'"([^"]*)"', kind):
            return {"enum": words}
        if array := re.fullmatch(r"Array<(.*)>", kind, re.S):
            return {"type": "array", "items": self._type(array[1], imported)}
        if mapping := re.fullmatch(r"\{\s*\[key: string\]: (.*?);\s*\}", kind, re.S):
            return {"type": "object", "additionalProperties": self._type(mapping[1], imported)}
        return {"$ref": self._reference(kind, imported)}

    def _reference(self, kind: str, imported: dict[str, str]) -> str:
        place = imported[kind]
        if place.startswith("./"):
            return self.reference(place.removeprefix("./").removesuffix(".js"))
        core = self.of_core(kind.removeprefix("I"))
        assert isinstance(core, dict), kind
        return str(core["$ref"])


class _Classes(_Typed):
    """The classes of an SDK made by OpenAPI Generator: each has tables of its attributes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._files = {
            node.name: node
            for file in folder.glob("v1*.py")
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.ClassDef)
        }

    def make(self, name: str) -> Schema:
        body = self._files[name]
        tables = {
            statement.targets[0].id: ast.literal_eval(statement.value)
            for statement in body.body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
        keys, kinds = tables["attribute_map"], tables["openapi_types"]
        return {
            "type": "object",
            "properties": {keys[each]: self._type(kind) for each, kind in kinds.items()},
            "required": [keys[each] for each in self._always_set(body) if each in keys],
            "additionalProperties": False,
        }

    @staticmethod
    def _always_set(body: ast.ClassDef) -> Iterator[str]:
        """The attributes that the constructor sets even to None, which their setters refuse: required ones."""
        (constructor,) = (each for each in body.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
        for statement in constructor.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
                yield statement.targets[0].attr

    def _type(self, kind: str) -> Schema:
        simple = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
        if kind in simple:
            return {"type": simple[kind]}
        if array := re.fullmatch(r"list\[(.*)\]", kind):
            return {"type": "array", "items": self._type(array[1])}
        if mapping := re.fullmatch(r"dict\(str, (.*)\)", kind):
            return {"type": "object", "additionalProperties": self._type(mapping[1])}
        if kind in self._files:
            return {"$ref": self.reference(kind)}
        if kind == "ResourceQuantity":
            return {"$ref": "#/$defs/io.k8s.apimachinery.pkg.api.resource.Quantity"}
        for place in ("io.k8s.api.core.v1", "io.k8s.apimachinery.pkg.apis.meta.v1"):
            if (full := f"{place}.{kind.removeprefix('V1')}") in _core():
                return {"$ref": f"#/$defs/{full}"}
        found = self.of_core(re.sub("^K8sIo", "IoK8s", kind))
        return False if found is None else found  # what is of a third party fits nothing: it is not used


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI is true")
    pytest.skip(f"{what} cannot be had here, for the schema of a custom resource")


@cache
def _npm(package: str, sha256: str) -> Path:
    """The files of a package of npm, in the cache. Nothing of it is run."""
    return _fetched(["npm", "pack", "--silent", package], package, sha256, "*.tgz", "gztar") / "package"


@cache
def _wheel(package: str, sha256: str) -> Path:
    """The files of a wheel, in the cache."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", package]
    return _fetched(pip, package, sha256, "*.whl", "zip")


def _fetched(command: list[str], package: str, sha256: str, pattern: str, form: str) -> Path:
    place = _CACHE / re.sub(r"\W+", "-", package).strip("-")
    if place.exists():
        return place
    if shutil.which(command[0]) is None:
        _missing(command[0])
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        try:
            subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True)
        except (subprocess.SubprocessError, OSError):
            _missing(package)
        (archive,) = Path(folder).glob(pattern)
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == sha256, package
        unpacked = Path(folder) / "unpacked"
        shutil.unpack_archive(archive, unpacked, form, **({"filter": "data"} if form == "gztar" else {}))
        if not place.exists():  # another process may have been faster
            try:
                unpacked.rename(place)
            except OSError:
                assert place.exists()
    return place
