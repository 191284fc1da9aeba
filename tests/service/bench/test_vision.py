import io

import PIL.Image
import pytest

from convoy.service.bench.plan import Closed, ImageModel, Plan
from convoy.service.bench.vision import from_folder, generated, workload
from convoy.service.errors import BadConfig
from convoy.service.pb.convoy.v1 import vision_pb2 as pb


@pytest.mark.parametrize(("colour", "mode"), [("L", "L"), ("RGB", "RGB")])
def test_generated_images_have_the_sizes_and_the_colour_and_differ(colour, mode):
    files = generated(colour, [(28, 32), (40, 20)])
    images = [PIL.Image.open(io.BytesIO(file)) for file in files]
    assert {(image.format, image.size, image.mode) for image in images} == {
        ("PNG", (32, 28), mode),
        ("PNG", (20, 40), mode),
    }
    assert len(set(files)) == len(files) > 2
    assert generated(colour, [(28, 32), (40, 20)]) == files


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(BadConfig, match="contains no JPEG or PNG file"):
        from_folder(tmp_path)


def asked(task, batch):
    model = ImageModel(model="net", version="1", weight=1, task=task, height=8, width=8, colour="L")
    plan = Plan(
        server="nowhere:1",
        models=(model,),
        load=Closed(1, 1.0),
        warm_up=0.0,
        batch=batch,
        deadline=1.0,
        seed=0,
        processes=1,
        folder=None,
        sizes=(),
    )
    return workload(plan, model, 0)


@pytest.mark.parametrize(("batch", "period"), [(1, 16), (4, 4), (6, 8), (32, 1)])
def test_requests_repeat_after_their_period(batch, period):
    work = asked("classification", batch)
    assert work.period == period
    bodies = [work.body(number) for number in range(2 * period)]
    assert bodies[:period] == bodies[period:]
    assert len(set(bodies)) == period


@pytest.mark.parametrize(
    ("task", "response"), [("classification", pb.ClassifyResponse()), ("segmentation", pb.SegmentResponse())]
)
def test_answer_read_without_timings_has_the_same_outcome(task, response):
    response.results.add().timings.batch_size = 4
    if task == "segmentation":
        response.results[0].segmentation.mask = b""
    response.results.add().error.CopyFrom(pb.ImageError(code=3, reason="BAD_IMAGE", message="no image"))
    work, answer = asked(task, 2), response.SerializeToString()
    outcome = work.read(0, answer)
    assert len(outcome.timings) == 1
    assert len(outcome.refused) == 1
    assert work.skim(0, answer) == outcome._replace(timings=())
