"""ListModels is read a page at a time, each of which fits one message."""

import pytest

from convoy.service.errors import BadRequest
from convoy.service.frontend.model_info import page
from convoy.service.metadata import Document, InputSpec
from convoy.service.repository import Version

USUAL_LIMIT = 4 << 20  # bytes of a message that a client of gRPC accepts
LABELS = [f"{number} {'x' * 20}" for number in range(1000)]
DOCUMENT = Document(task="classification", labels=LABELS, input=InputSpec(colour="RGB", height=224, width=224))


def rows(models: int, versions: int = 1, document: Document = DOCUMENT) -> list[Version]:
    """In the order of a table."""
    return [
        Version(model=f"m{model:04}", version=version, state="READY", document=document)
        for model in range(models)
        for version in range(versions, 0, -1)
    ]


def keys(table: list[Version], token: str = "") -> list[tuple[str, int]]:
    """Of all rows from a page on."""
    response = page(table, token)
    assert response.ByteSize() < USUAL_LIMIT
    found = [(info.model, info.version) for info in response.models]
    return found + (keys(table, response.next_page_token) if response.next_page_token else [])


@pytest.mark.parametrize(("models", "versions"), [(0, 1), (1, 1), (500, 1), (3, 200)])
def test_pages_have_every_row_once_in_order(models: int, versions: int) -> None:
    table = rows(models, versions)
    assert keys(table) == [(row.model, row.version) for row in table]


def test_what_fits_is_one_page() -> None:
    assert page(rows(50), "").next_page_token == ""
    assert page(rows(500), "").next_page_token != ""


def test_largest_document_fits_a_page_of_its_own() -> None:
    labels = [f"{number:05}{'x' * 7}" for number in range(60_000)]
    palette = [(255, 255, 255)] * len(labels)
    document = Document(
        task="classification", labels=labels, palette=palette, input=InputSpec(colour="RGB", height=8, width=8)
    )
    assert len(keys(rows(3, document=document))) == 3


def test_page_goes_on_where_the_table_has_lost_the_row_of_the_token() -> None:
    table = rows(500)
    first = page(table, "")
    last = len(first.models) - 1
    changed = table[:last] + table[last + 1 :]
    assert page(changed, first.next_page_token).models[0].model == table[last + 1].model


@pytest.mark.parametrize("token", ["x", "/", "m/", "/1", "../1", "m/-1", "m/" + "9" * 5000, "m/1/2", "M/1", "x" * 5000])
def test_token_of_no_page_is_refused(token: str) -> None:
    with pytest.raises(BadRequest, match="want the next_page_token of an answer") as caught:
        page(rows(1), token)
    assert len(caught.value.message) < 200
