"""JSON Schemas of the Open Inference Protocol's objects over HTTP, for the OpenAPI document."""

from typing import Any

import msgspec

from convoy.service.dtypes import NAMES

Schema = dict[str, Any]


class Index(msgspec.Struct):
    """The body of a request for the index of the repository."""

    ready: bool = False


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_ANY: Schema = {"type": "object"}
BINARY: Schema = {"type": "string", "format": "binary"}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_DATATYPE: Schema = {"type": "string", "enum": [*sorted(NAMES), "BYTES"]}
_DATA: Schema = {"type": "array", "description": "Flat or nested, row by row"}

SERVER = _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)})
LIVE = _object({"live": _FLAG})
READY = _object({"ready": _FLAG})
MODEL_READY = _object({"name": _TEXT, "ready": _FLAG})
NAMES_OF_MODELS = _object({"models": _list(_TEXT)})
_TENSOR = _object({"name": _TEXT, "datatype": _DATATYPE, "shape": _list(_WHOLE)})
METADATA = _object(
    {"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT, "inputs": _list(_TENSOR), "outputs": _list(_TENSOR)},
    properties={"type": "object", "additionalProperties": _TEXT},
)
CONFIG = _object(
    {"name": _TEXT, "platform": _TEXT, "max_batch_size": _COUNT, "input": _list(_ANY), "output": _list(_ANY)}
)
_DURATION = _object({"count": _COUNT, "ns": _COUNT})
STATISTICS = _object(
    {
        "model_stats": _list(
            _object(
                {"name": _TEXT, "version": _TEXT, "inference_count": _COUNT, "execution_count": _COUNT},
                last_inference=_COUNT,
                inference_stats={"type": "object", "additionalProperties": _DURATION},
                batch_stats=_list(_ANY),
            )
        )
    }
)
INDEX_REQUEST = _object({}, ready=_FLAG)
INDEX = _list(_object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT}))
REQUEST = _object(
    {
        "inputs": {
            "type": "array",
            "items": _object(
                {"name": _TEXT, "shape": _list(_COUNT), "datatype": _DATATYPE}, parameters=_PARAMETERS, data=_DATA
            ),
        }
    },
    id=_TEXT,
    parameters=_PARAMETERS,
    outputs=_list(_object({"name": _TEXT}, parameters=_PARAMETERS)),
)
RESPONSE = _object(
    {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "outputs": _list(
            _object({"name": _TEXT, "shape": _list(_COUNT), "datatype": _DATATYPE}, parameters=_PARAMETERS, data=_DATA)
        ),
    },
    parameters=_PARAMETERS,
)
ERROR = _object({"error": _TEXT, "reason": _TEXT}, retry_after={"type": "number"})
