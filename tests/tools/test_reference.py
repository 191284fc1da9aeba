"""The reference in docs/ is what the source gives, and leaves nothing out."""

import re

import msgspec
import pytest
from prometheus_client.metrics import MetricWrapperBase

import convoy
from convoy.service import cli, config, errors, metrics
from tools import reference
from tools.reference import Page


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_page_is_what_the_source_gives(page: Page) -> None:
    kept = (reference.FOLDER / page.name).read_text()
    assert kept == page.write(), "run 'make reference' and commit"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in reference.FOLDER.iterdir()} == {page.name for page in reference.PAGES}


def cells(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]


def test_every_setting_has_a_type_and_a_meaning() -> None:
    rows = cells(reference.configuration())
    sections = [(f"{field.name}.", field.type) for field in msgspec.structs.fields(config.Config)]
    wanted = {
        f"`{prefix}{field.name}`"
        for prefix, kind in [*sections, ("", config.ModelConfig)]
        for field in msgspec.structs.fields(kind)
    }
    assert {row[0] for row in rows} == wanted
    assert [row[0] for row in rows if not (row[1] and row[3])] == []


def test_every_metric_has_a_row() -> None:
    ours = [metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    named = [row[0].strip("`") for row in cells(reference.metric_table())]
    assert {name for name in ours if name not in named and f"{name}_total" not in named} == set()
    assert "convoy_engine_restarts_total" in named
    assert "nv_inference_count" in named


def test_every_reason_has_a_row_and_those_of_callers_have_advice() -> None:
    rows = {row[0].strip("`"): row for row in cells(reference.error_table())}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ConvoyError)]
    assert set(rows) == {kind.reason for kind in kinds}
    assert [reason for reason, row in rows.items() if not row[-1] and "at load or start" not in row[1]] == []


def test_every_command_and_public_name_has_a_heading() -> None:
    text = reference.command_pages() + reference.client()
    headings = set(re.findall(r"^## (.*)$", text, re.MULTILINE))
    assert headings == {f"convoy {name}" for name in cli.COMMANDS} | {f"convoy.{name}" for name in convoy.__all__}


def test_an_openapi_document_becomes_a_page() -> None:
    operation = {
        "summary": "Labels of one <image>",
        "parameters": [{"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1}}],
        "requestBody": {"content": {"image/png": {}}},
        "responses": {"200": {"content": {"application/json": {}}}, "400": {}, "503": {}},
    }
    text = reference.http_api({"paths": {"/v1/models/{model}:classify": {"post": operation}}})
    for line in (
        "## POST /v1/models/{model}:classify",
        r"Labels of one \<image\>",
        "| `top_k` | query | integer, at least 1 |",
        "Asks: `image/png`.",
        "Answers: `application/json`.",
        "Refusals: 400, 503.",
    ):
        assert line in text.splitlines()
