"""README.md and docs/ list what there is: commands, options, settings, metrics, reasons, files."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer
from prometheus_client.metrics import MetricWrapperBase

from convoy.service import cli, config, errors, metrics

ROOT = Path(__file__).parent.parent
MODULES = [path for folder in ("service", "models", "tests", "tools") for path in ROOT.glob(f"{folder}/**/*.py")]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}


def typed(text: str) -> Iterator[list[str]]:
    """The words of every `convoy` command of a page, on a line of its own or in a sentence.

    A line that ends in a backslash goes on below. Placeholders in capitals stay as they are.
    """
    lines = re.findall(r"^    (?:\$ )?(?:.*\s|\.venv/bin/)?convoy (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    for line in [*lines, *re.findall(r"`convoy\s([^`]+)`", text)]:
        words = shlex.split(line, comments=True)
        if words and re.fullmatch(r"[a-z-]+", words[0]):
            yield words


def unknown(words: list[str]) -> list[str]:
    """What the command line does not know of a command: its name, or options."""
    if words == ["--version"]:
        return []
    if words[0] not in cli.COMMANDS:
        return [words[0]]
    module = importlib.import_module(cli.COMMANDS[words[0]].module)
    found = getattr(module, words[0].replace("-", "_"))
    app = found if isinstance(found, typer.Typer) else typer.Typer()
    if app is not found:
        app.command(words[0])(found)
    command = typer.main.get_command(app)
    if hasattr(command, "commands"):
        if not words[1:] or words[1].isupper():
            return []
        if words[1] not in command.commands:
            return [words[1]]
        command = command.commands[words[1]]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [option for option in given if option not in options | {"--help"}]


TYPED = {" ".join(words): words for text in PAGES.values() for words in typed(text)}


def test_pages_show_every_command() -> None:
    assert {words[0] for words in TYPED.values()} - {"--version"} == set(cli.COMMANDS)


@pytest.mark.parametrize("words", TYPED.values(), ids=TYPED)
def test_command_of_a_page_and_its_options_are_there(words: list[str]) -> None:
    assert unknown(words) == []


@pytest.mark.parametrize("line", ["serv --repository x", "serve --folder x", "data look x", "visualize class x --big"])
def test_command_or_option_that_is_not_there_would_be_seen(line: str) -> None:
    assert unknown(line.split())


def rows(page: str) -> list[list[str]]:
    """The cells of every row of the tables of a page."""
    lines = [line for line in PAGES[page].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_every_setting_is_documented_with_its_default() -> None:
    documented: dict[str, str] = {}
    for names, default, _ in rows("docs/configuration.md"):
        first, *others = re.findall(r"`([\w.]+)`", names)
        section = first.partition(".")[0]
        keys = [first, *(f"{section}.{other}" for other in others)]
        documented |= dict(zip(keys, default.split(", ") if others else [default], strict=True))
    settings = {
        f"{section.name}.{setting.name}": setting.default
        for section in msgspec.structs.fields(config.Config)
        for setting in msgspec.structs.fields(section.type)
    }
    assert set(documented) == set(settings)
    shown = {key: text.strip("`") for key, text in documented.items()}
    expected = {
        key: "" if default in (None, "") else "[]" if default == () else msgspec.json.encode(default).decode()
        for key, default in settings.items()
    }
    assert shown == expected


def test_every_setting_of_a_model_is_documented() -> None:
    (line,) = re.findall(r"/model\.toml` may set (.*?)\sfor\sone\smodel", PAGES["docs/configuration.md"], re.DOTALL)
    assert set(re.findall(r"`(\w+)`", line)) == {field.name for field in msgspec.structs.fields(config.ModelConfig)}


def test_every_metric_is_documented_with_its_labels() -> None:
    documented = {name for row in rows("docs/metrics.md") for name in re.findall(r"`(\w+)`", row[0])}
    ours = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    kept_by_the_supervisor = {
        "convoy_engine_restarts_total",
        "convoy_frontend_restarts_total",
        "convoy_recycled_total",
        "convoy_build_info",
        "convoy_process_cpu_seconds_total",
        "convoy_process_resident_bytes",
    }
    assert documented == {metric._name + ("_total" if metric._type == "counter" else "") for metric in ours} | (
        kept_by_the_supervisor
    )
    text = PAGES["docs/metrics.md"]
    for metric in ours:
        name = metric._name + ("_total" if metric._type == "counter" else "")
        (row,) = [row for row in rows("docs/metrics.md") if f"`{name}`" in row[0]]
        assert set(metric._labelnames) <= set(re.findall(r"\w+", row[1])), name
    for name, *_ in metrics._TRITON:
        inner = re.fullmatch(r"nv_inference_(\w+)_duration_us", name)
        assert f"`{inner[1] if inner else name}`" in text


def test_every_reason_that_a_caller_may_see_is_documented() -> None:
    documented = set(re.findall(r"\b[A-Z]+_[A-Z]+\b|INTERNAL", PAGES["docs/errors.md"]))
    at_load_or_start = {"BAD_METADATA", "BAD_MODEL_FILE", "BAD_CONFIG"}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ConvoyError)]
    assert {kind.reason for kind in kinds} - at_load_or_start <= documented


def lost(page: str, text: str) -> list[str]:
    """Links and paths of a page that lead to no file of the repository."""
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    paths = re.findall(r"`((?:service|models|tests|tools|proto|deploy|docs|convoy)/[\w./-]*)(?:::\w+)?[^`\n]*`", text)
    modules = re.findall(r"`([\w/]+\.py)`", text)  # some by the end of their path
    return [
        *(link for link in links if not (folder / link).exists()),
        *(path for path in paths if not (ROOT / path).exists()),
        *(module for module in modules if not any(path.match(module) for path in MODULES)),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_of_a_page_lead_to_files(page: str) -> None:
    # The page that shows how a network is added names the files that are added.
    added = {"models/classification/all_cnn.py", "tests/models/classification/test_all_cnn.py"}
    assert set(lost(page, PAGES[page])) <= (added if page == "docs/adding-a-network.md" else set())


@pytest.mark.parametrize("text", ["[a](nowhere.md)", "`service/nowhere.py`", "`nowhere.py`", "[a](nowhere.md#b)"])
def test_link_or_path_that_leads_nowhere_would_be_seen(text: str) -> None:
    assert lost("docs/README.md", text)


def anchors(page: str) -> set[str]:
    """What a link into a page may name: its headings, as the places that show Markdown write them."""
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_a_page_lead_to_headings() -> None:
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([\w-]+\.md)#([\w-]+)\)", text):
            assert anchor in anchors(f"docs/{target}"), f"{page}: {target}#{anchor}"


def test_index_leads_to_every_page() -> None:
    named = set(re.findall(r"\]\(([\w-]+\.md)", PAGES["docs/README.md"]))
    assert named == {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}
