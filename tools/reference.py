"""`make reference`: writes `docs/reference/` from the source. A test finds a page that is not what the source gives.

The text of a page is that of comments, docstrings and help. So a page is corrected in the source.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import typer

import convoy.service
from convoy.service import cli, config, errors
from convoy.service.frontend import status
from convoy.service.frontend.rest import application
from tools.watching.table import table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
_MADE = "Written by `make reference` from `{source}`.\n"


# ------------------------------------------------------------------------------------------------------ configuration


def configuration() -> str:
    """Every setting: key, type, range, default, meaning."""
    notes = _comments(config)
    lines = [
        "# Settings",
        "",
        "Every key of the configuration file and of `--set`. " + _MADE.format(source="service/config.py").rstrip(),
        "[configuration.md](../configuration.md) explains them at length.",
        "",
    ]
    sections = [(field.name, field.type) for field in msgspec.structs.fields(config.Config)]
    for name, kind in [*sections, ("model.toml", config.ModelConfig)]:
        own = kind is config.ModelConfig
        lines += [f"## {name if own else f'[{name}]'}", "", inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0], ""]
        lines += ["| key | type and range | default | meaning |", "| --- | --- | --- | --- |"]
        types = {field.name: field.type for field in msgspec.inspect.type_info(kind).fields}  # type: ignore[attr-defined]
        for field in msgspec.structs.fields(kind):
            default = "" if field.default in (None, "") else f"`{msgspec.json.encode(field.default).decode()}`"
            key = field.name if own else f"{name}.{field.name}"
            meaning = notes[kind.__name__, field.name]
            if not meaning and own:
                (section,) = [name for name, each in sections if field.name in each.__struct_fields__]
                meaning = f"As `{section}.{field.name}`"
            lines.append(_row([f"`{key}`", _type(types[field.name]), default, meaning]))
        lines.append("")
    return "\n".join(lines)


def _comments(module: Any) -> dict[tuple[str, str], str]:
    """The comment of each field of the classes of a module: on its line, or on the lines above it. The next fields
    share those lines if they have the same type and no comment of their own."""
    source = Path(module.__file__).read_text()
    lines = source.splitlines()
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        shared, of = "", ""
        before = node.lineno
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                above = [line.strip() for line in lines[before : field.lineno - 1]]
                kind = ast.unparse(field.annotation)
                if above or kind != of:
                    shared, of = " ".join(line.removeprefix("# ") for line in above if line), kind
                trailing = re.search(r"  # (?!type:|noqa)(.*)$", lines[(field.end_lineno or field.lineno) - 1])
                found[node.name, field.target.id] = _sentence(trailing[1] if trailing else shared)
            before = field.end_lineno or field.lineno
    return found


def _sentence(text: str) -> str:
    text = text.removesuffix(".")
    return text if text[1:2].isupper() else f"{text[:1].upper()}{text[1:]}"  # gRPC keeps its letters


def _type(kind: Any) -> str:
    """A type of msgspec, in words."""
    match type(kind).__name__:
        case "UnionType":
            return " or ".join(_type(each) for each in kind.types if type(each).__name__ != "NoneType")
        case "IntType":
            return "integer" + _bounds(kind)
        case "FloatType":
            return "number" + _bounds(kind)
        case "BoolType":
            return "`true`, `false`"
        case "StrType":
            return "text" + (f" that matches `{kind.pattern}`" if kind.pattern else "")
        case "LiteralType":
            return ", ".join(f'`"{value}"`' for value in kind.values)
        case "VarTupleType" | "ListType":
            return f"list of {_type(kind.item_type)}"
        case "TupleType":
            return f"[{', '.join(_type(each) for each in kind.item_types)}]"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


def _bounds(kind: Any) -> str:
    if kind.ge is not None and kind.le is not None:
        return f", {_number(kind.ge)} to {_number(kind.le)}"
    words = {"at least": kind.ge, "above": kind.gt, "at most": kind.le, "below": kind.lt}
    return "".join(f", {word} {_number(value)}" for word, value in words.items() if value is not None)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


# ------------------------------------------------------------------------------------------------------------ metrics


def metric_table() -> str:
    """Every metric: name, type, labels, help."""
    lines = [
        "# All metrics",
        "",
        "What port 8002 serves. " + _MADE.format(source="service/metrics.py").rstrip(),
        "[metrics.md](../metrics.md) says how to use them.",
        "",
        "| metric | type | labels | help |",
        "| --- | --- | --- | --- |",
        *(_row([f"`{name}`", kind, ", ".join(labels), text]) for name, kind, labels, text in table()),
        "",
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- errors


def error_table() -> str:
    """Every reason: status of gRPC and of HTTP, meaning, and what to do."""
    advice: dict[str, str] = {}
    for code, comment in re.findall(r"^    \w+: Code\.(\w+),(?:  # (.*))?$", _source(status), re.MULTILINE):
        if comment:
            advice[code] = f"{comment[0].upper()}{comment[1:]}."
    http = _http_status()
    lines = [
        "# All errors",
        "",
        "Every reason that a caller or an operator may see. "
        + _MADE.format(source="service/errors.py` and `service/frontend/status.py").rstrip(),
        "[errors.md](../errors.md) says more about them.",
        "",
        f"| reason | gRPC status |{' HTTP |' if http else ''} meaning | what to do |",
        f"| --- | --- |{' --- |' if http else ''} --- | --- |",
    ]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ConvoyError):
            code = status.STATUS.get(kind)
            name = code.name if code else "INTERNAL" if kind is errors.ConvoyError else "none: at load or start"
            text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
            if kind is errors.ConvoyError:
                text = "A fault of the server; its log has the details."
            cells = [f"`{kind.reason}`", name, *([str(http.get(kind, ""))] if http else []), text]
            lines.append(_row([*cells, advice.get(name, "")]))
    return "\n".join([*lines, ""])


def _http_status() -> dict[type[errors.ConvoyError], int]:
    """The HTTP status of each error, where there is an HTTP API."""
    try:
        refusals = importlib.import_module("convoy.service.frontend.rest.refusals")
    except ModuleNotFoundError:
        return {}
    found: dict[type[errors.ConvoyError], int] = refusals.STATUS
    return {errors.ConvoyError: 500, **found}


# ----------------------------------------------------------------------------------------------------------- commands


def command_pages() -> str:
    """Every command with its options, as its help shows them."""
    lines = ["# All commands", "", "What `convoy COMMAND --help` prints. " + _MADE.format(source="service/cli.py")]
    lines += ["| command | |", "| --- | --- |"]
    lines += [f"| [`convoy {name}`](#convoy-{name}) | {command.summary} |" for name, command in cli.COMMANDS.items()]
    for name, entry in cli.COMMANDS.items():
        function = getattr(importlib.import_module(entry.module), name.replace("-", "_"))
        app = function if isinstance(function, typer.Typer) else typer.Typer(add_completion=False)
        if app is not function:
            app.command(name)(function)
        lines += ["", *_command(typer.main.get_command(app), f"convoy {name}", 2)]
    return "\n".join([*lines, ""])


def _command(command: Any, path: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} {path}"
    yield ""
    yield _escaped(inspect.cleandoc(command.help or ""))
    context = typer.Context(command, info_name=path)
    subcommands: dict[str, Any] = getattr(command, "commands", {})
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [record for record in records if record is not None and not record[0].startswith("--help")]
    if rows and not subcommands:
        yield ""
        yield "| option | |"
        yield "| --- | --- |"
        for names, text in rows:
            yield _row([f"`{' '.join(names.split())}`", _escaped(" ".join(text.split()))])
    for name, each in subcommands.items():
        yield ""
        yield from _command(each, f"{path} {name}", level + 1)


# ------------------------------------------------------------------------------------------------------------- client


def client() -> str:
    """The public names of `convoy`: signatures and docstrings."""
    lines = ["# The Python client", "", "All that `import convoy` offers. " + _MADE.format(source="service/client")]
    lines[-1] = lines[-1].rstrip()
    lines += ["[client.md](../client.md) shows how to use it.", ""]
    for name in convoy.__all__:
        node, source = _definition(name)
        lines += [f"## convoy.{name}", ""]
        if isinstance(node, ast.ClassDef):
            lines += list(_class(node, source, name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines += list(_function(node, source, f"convoy.{name}"))
        else:
            lines += ["```python", ast.get_source_segment(source, node) or "", "```", ""]
    return "\n".join(lines)


def _definition(name: str) -> tuple[ast.stmt, str]:
    """The definition of a public name, and the source in which it is."""
    for file in (*Path(convoy.service.__path__[0], "client").glob("*.py"), Path(errors.__file__)):
        source = file.read_text()
        for node in ast.parse(source).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = [getattr(node, "name", ""), *(each.id for each in targets if isinstance(each, ast.Name))]
            if name in names:
                return node, source
    raise LookupError(f"{name} is defined nowhere")


def _class(node: ast.ClassDef, source: str, name: str) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield from (_docstring(text), "")
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    if fields:
        yield from ("```python", *(ast.get_source_segment(source, each) or "" for each in fields), "```", "")
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_"):
            yield f"### {name}.{each.name}"
            yield ""
            yield from _function(each, source, each.name)
        elif isinstance(each, ast.FunctionDef) and each.name == "__init__":
            yield from _function(each, source, f"convoy.{name}")


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, source: str, name: str) -> Iterator[str]:
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    text = " ".join(line.partition("  # ")[0].strip() for line in lines).removesuffix(":")
    text = (
        re.sub(r"\( | \)|,(?= \))", lambda found: found[0].strip(" ,"), text)
        .replace("(self, ", "(")
        .replace("(self)", "()")
    )
    signature = re.sub(r"^(async )?def \w+", lambda found: f"{found[1] or ''}{name}", text)
    if any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list):
        signature = signature.replace("()", "", 1)
    yield from ("```python", signature.removesuffix(" -> None") if name.startswith("convoy.") else signature, "```", "")
    if docstring := ast.get_docstring(node):
        yield from (_docstring(docstring), "")


def _docstring(text: str) -> str:
    """A docstring whose lists of parameters (`name  text`) are lists of Markdown."""
    return re.sub(r"^(\w+)  +(?=\S)", r"- `\1`: ", text, flags=re.MULTILINE)


# --------------------------------------------------------------------------------------------------------------- APIs


def grpc_api() -> str:
    """Both services, as their schemas say."""
    lines = ["# The gRPC APIs", "", "What port 8001 speaks. " + _MADE.format(source="proto").rstrip()]
    lines += ["[protocols.md](../protocols.md) shows how to call it.", ""]
    for title, file in (
        ("Convoy's own service", "convoy/v1/vision.proto"),
        ("The Open Inference Protocol", "inference.proto"),
    ):
        lines += [f"## {title}", "", "```protobuf", (ROOT / "proto" / file).read_text().strip(), "```", ""]
    return "\n".join(lines)


def http_api(document: dict[str, Any]) -> str:
    """The operations of an OpenAPI document, with their parameters and answers."""
    lines = ["# The HTTP API", "", "What port 8000 speaks; `/openapi.json` has all of it for programs."]
    lines += ["`make docs` writes this page from that document.", ""]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += [f"## {method.upper()} {path}", "", _escaped(operation.get("summary", "")), ""]
            parameters = operation.get("parameters", [])
            if parameters:
                lines += ["| parameter | in | |", "| --- | --- | --- |"]
                lines += [
                    _row([f"`{each['name']}`", each["in"], _schema(each.get("schema", {}))]) for each in parameters
                ]
                lines.append("")
            for title, body in (
                ("Asks", operation.get("requestBody", {})),
                ("Answers", operation["responses"].get("200", {})),
            ):
                kinds = ", ".join(f"`{kind}`" for kind in body.get("content", {}))
                if kinds:
                    lines += [f"{title}: {kinds}.", ""]
            refused = ", ".join(code for code in operation["responses"] if code != "200")
            lines += [f"Refusals: {refused}.", ""] if refused else []
    return "\n".join(lines)


def _schema(schema: dict[str, Any]) -> str:
    words = [str(schema.get("type", ""))]
    words += [f"one of {', '.join(f'`{value}`' for value in schema['enum'])}"] if "enum" in schema else []
    words += [f"matches `{schema['pattern']}`"] if "pattern" in schema else []
    words += [f"at least {schema['minimum']}"] if "minimum" in schema else []
    words += [schema["description"]] if "description" in schema else []
    return ", ".join(word for word in words if word)


# -------------------------------------------------------------------------------------------------------------- pages


def _source(module: Any) -> str:
    return Path(module.__file__).read_text()


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').strip() for cell in cells)} |".replace("|  |", "| |")


def _escaped(text: str) -> str:
    """Text of a help, as Markdown shows it unchanged."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


class Page(NamedTuple):
    """A page of the reference and the function that writes it."""

    name: str
    write: Callable[[], str]


PAGES = (
    Page("configuration.md", configuration),
    Page("metrics.md", metric_table),
    Page("errors.md", error_table),
    Page("commands.md", command_pages),
    Page("client.md", client),
    Page("grpc.md", grpc_api),
    Page("http.md", lambda: http_api(msgspec.json.decode(application.described()))),
)


def write(folder: Path) -> None:
    """Writes all pages into a folder."""
    folder.mkdir(exist_ok=True)
    for page in PAGES:
        (folder / page.name).write_text(page.write())


def main() -> None:
    write(FOLDER)
    print(f"{len(PAGES)} pages in {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
