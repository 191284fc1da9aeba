"""JSON Schemas (2020-12) of what images over HTTP and KServe's predictions are asked with and answered, for the OpenAPI
document."""

from typing import Any

from convoy.service import metrics

Schema = dict[str, Any]


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _strict(required: dict[str, Schema], **optional: Schema) -> Schema:
    """Returns the schema of an object that is refused with any other member."""
    return {**_object(required, **optional), "additionalProperties": False}


def _list(of: Schema, **limits: Any) -> Schema:
    return {"type": "array", "items": of, **limits}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number"}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_FILE: Schema = _object({"b64": {"type": "string", "contentEncoding": "base64"}})
_SENT: Schema = _strict({"b64": {"type": "string", "contentEncoding": "base64"}})
_BINARY: Schema = {"type": "string", "format": "binary"}

MOST_LABELS = 2**32 - 1
PRIORITY: Schema = {"type": "string", "enum": ["normal", "low"], "default": "normal"}
TOP_K: Schema = {
    "type": "integer",
    "minimum": 0,
    "maximum": MOST_LABELS,
    "default": 0,
    "description": "How many labels an image, the most probable first; 0: five",
}
CONFIDENCE: Schema = {
    "type": "string",
    "enum": ["0", "1", "false", "true"],
    "default": "0",
    "description": "Whether each mask comes with the confidence of its pixels, a grey PNG file",
}
AS: Schema = {
    "type": "string",
    "enum": ["json", "png", "overlay"],
    "default": "json",
    "description": "png: the mask as a palette PNG file, whose indices are the classes, which an Accept header of "
    "image/png asks for, too; overlay: the picture under the mask's colours. Both for a single image",
}

IMAGES: Schema = {
    "oneOf": [_strict({"image_bytes": _SENT}), _strict({"images": _list(_SENT, minItems=1)})],
    "description": "JPEG or PNG files",
}
FORM: Schema = _object({"images": _list(_BINARY, minItems=1)})
PNG: Schema = {**_BINARY, "description": "A PNG file"}
FILE: Schema = {**_BINARY, "description": "A JPEG or PNG file"}

_FAILED = _object({"error": _TEXT, "reason": _TEXT})
_TIMINGS = _object(
    {**{f"{stage}_seconds": _SECONDS for stage in (*metrics.STAGES, "total")}, "batch_size": _COUNT},
)
_LABELS = _list(_object({"index": _COUNT, "name": _TEXT, "probability": _SHARE}))
_CLASS_MAP = _object(
    {
        "height_px": _COUNT,
        "width_px": _COUNT,
        "class_pixels": _list(_object({"class_index": _COUNT, "name": _TEXT, "pixels": _COUNT})),
        "run_lengths": _list(_object({"class_index": _COUNT, "counts": _TEXT})),
        "timings": _TIMINGS,
    },
    confidence_png=_FILE,
)


def _results(result: Schema) -> Schema:
    return _object({"model": _TEXT, "version": _COUNT, "results": _list({"anyOf": [result, _FAILED]}, minItems=1)})


CLASSIFIED = _results(_object({"labels": _LABELS, "timings": _TIMINGS}))
SEGMENTED = _results(_CLASS_MAP)

INSTANCES = _strict(
    {
        "instances": {
            "type": "array",
            "minItems": 1,
            "description": "Nested lists of numbers; objects with a nested list for each input; or image files, "
            '{"b64": ".."} or {"image_bytes": {"b64": ".."}}, for a model that classifies or segments images',
        }
    }
)
PREDICTIONS = _object(
    {
        "predictions": {
            "type": "array",
            "description": "For each instance: the output as nested lists, or an object with each output; "
            '{"labels": [..]} or {"mask_png": {"b64": ".."}, "class_pixels": {..}} for an image file',
        }
    }
)
