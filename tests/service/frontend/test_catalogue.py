"""A version is let go once nothing refers to it, and a request finds the model that it means."""

import pytest

from convoy.service.errors import BadRequest, ModelUnavailable, UnknownModel
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.metadata import Document, InputSpec, Task
from convoy.service.repository import State, Table, Version
from tests.service import networks

Released = list[tuple[str, int]]


def row(model: str, version: int, task: Task | None = "classification", state: State = "READY") -> Version:
    document = None
    if task is not None:
        document = Document(task=task, labels=["a"], input=InputSpec(colour="L", height=8, width=8))
    return Version(model=model, version=version, state=state, document=document if state == "READY" else None)


def table(*rows: Version, complete: bool = True) -> Table:
    return Table(rows, complete)


@pytest.fixture
def released() -> Released:
    return []


@pytest.fixture
def catalogue(released: Released) -> Catalogue:
    return Catalogue(lambda model, version: released.append((model, version)))


OLD, NEW = row("digits", 1), row("digits", 2)


def test_unused_version_is_released_when_it_no_longer_serves(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD))
    assert released == []
    catalogue.update(table(NEW, row("digits", 1, state="UNAVAILABLE")))
    assert released == [("digits", 1)]
    catalogue.update(table(NEW))
    assert released == [("digits", 1)]  # once


def test_version_in_use_is_released_with_its_last_request(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD))
    with catalogue.using(OLD):
        with catalogue.using(OLD):
            catalogue.update(table(NEW))
            assert released == []
        assert released == []
    assert released == [("digits", 1)]


def test_version_is_released_also_where_its_last_request_failed(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD))

    def fail() -> None:
        with catalogue.using(OLD):
            catalogue.update(table(NEW))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert released == [("digits", 1)]


def test_version_that_serves_is_not_released_after_a_request(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD))
    with catalogue.using(OLD):
        pass
    assert released == []


def test_version_that_came_back_in_time_is_not_released(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD))
    with catalogue.using(OLD):
        catalogue.update(table())
        catalogue.update(table(OLD))
    assert released == []
    catalogue.update(table())
    assert released == [("digits", 1)]


def test_every_version_has_its_own_users(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD, row("scenes", 1)))
    with catalogue.using(OLD):
        assert (catalogue.users(OLD), catalogue.users(NEW)) == (1, 0)
        catalogue.update(table())
        assert released == [("scenes", 1)]
    assert catalogue.users(OLD) == 0


def test_table_stays_while_a_restarted_engine_loads(catalogue: Catalogue, released: Released) -> None:
    catalogue.update(table(OLD))
    catalogue.update(table(row("digits", 1, state="LOADING"), complete=False))
    assert catalogue.for_task("digits", 0, "classification") == OLD
    assert released == []
    catalogue.update(table(NEW))
    assert catalogue.for_task("digits", 0, "classification") == NEW


def test_table_of_a_first_engine_is_taken_while_it_loads(catalogue: Catalogue) -> None:
    catalogue.update(table(OLD, row("scenes", 1, state="LOADING"), complete=False))
    assert catalogue.for_task("digits", 0, "classification") == OLD
    with pytest.raises(ModelUnavailable):
        catalogue.for_task("scenes", 0, "segmentation")


def test_model_is_found_by_name_version_and_task(catalogue: Catalogue) -> None:
    catalogue.update(table(NEW, row("scenes", 7, "segmentation")))
    assert catalogue.for_task("digits", 2, "classification") == NEW
    assert catalogue.for_task("scenes", 0, "segmentation").version == 7


@pytest.mark.parametrize(
    ("model", "version", "task", "error", "why"),
    [
        ("nothing", 0, "classification", UnknownModel, "unknown"),
        ("digits", 9, "classification", UnknownModel, "no version 9"),
        ("digits", -1, "classification", BadRequest, "version is -1"),
        ("digits", 0, "segmentation", BadRequest, "is for classification, want segmentation"),
        ("scenes", 0, "classification", BadRequest, "is for segmentation, want classification"),
        ("plain", 0, "classification", BadRequest, "no metadata.*ModelInfer"),
    ],
)
def test_what_a_request_cannot_mean_is_refused(
    catalogue: Catalogue, model: str, version: int, task: Task, error: type[Exception], why: str
) -> None:
    catalogue.update(table(NEW, row("scenes", 7, "segmentation"), row("plain", 1, None)))
    with pytest.raises(error, match=why):
        catalogue.for_task(model, version, task)


def test_no_name_stands_for_the_only_model_of_the_task(catalogue: Catalogue) -> None:
    catalogue.update(table(NEW, row("digits", 1, state="UNAVAILABLE"), row("scenes", 7, "segmentation")))
    assert catalogue.for_task("", 0, "classification") == NEW
    assert catalogue.for_task("", 7, "segmentation").model == "scenes"
    catalogue.update(table(NEW, row("letters", 1), row("plain", 1, None)))
    with pytest.raises(UnknownModel, match=r"2 models for classification are served: name one of digits, letters$"):
        catalogue.for_task("", 0, "classification")
    for sees, names in ((lambda name: name == "letters", " of letters$"), (lambda name: False, "$")):
        with pytest.raises(UnknownModel, match=f"2 models for classification are served: name one{names}"):
            catalogue.for_task("", 0, "classification", sees)
    with pytest.raises(UnknownModel, match=r"no model for segmentation is served$"):
        catalogue.for_task("", 0, "segmentation")


@pytest.mark.parametrize(
    "known", [table(complete=False), table(row("digits", 1, state="LOADING"), row("scenes", 7, "segmentation"))]
)
def test_no_name_may_stand_for_a_model_that_still_loads(catalogue: Catalogue, known: Table) -> None:
    catalogue.update(known)
    with pytest.raises(ModelUnavailable) as loading:
        catalogue.for_task("", 0, "classification")
    assert loading.value.retry_after
    catalogue.update(table(row("scenes", 7, "segmentation")))
    with pytest.raises(UnknownModel):
        catalogue.for_task("", 0, "classification")


def test_model_of_tensors_is_not_one_of_images(catalogue: Catalogue) -> None:
    document = Document(task="classification", labels=["a"], tensor=networks.WAVES)
    waves = Version(model="waves", version=1, state="READY", document=document)
    catalogue.update(table(NEW, waves))
    assert catalogue.for_task("", 0, "classification") == NEW
    with pytest.raises(BadRequest, match=r"no images, but a float32 tensor 'waveform' \[N, 3, time\], over Model"):
        catalogue.for_task("waves", 0, "classification")
    catalogue.update(table(waves))
    with pytest.raises(UnknownModel, match="no model for classification is served"):
        catalogue.for_task("", 0, "classification")
