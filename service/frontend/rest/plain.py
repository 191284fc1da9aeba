"""Protobuf messages as JSON values, as servers of the Open Inference Protocol write them: the names of the fields as
they are, every field, and whole numbers as numbers (protobuf's own JSON has text for those of 64 bits)."""

from base64 import b64encode
from typing import Any

from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """Returns a message as a JSON object. Messages that are not set, and choices that were not made, are left out."""
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not (field.has_presence and not message.HasField(field.name))
    }


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {key: _single(of, one) for key, one in value.items()}
    if field.is_repeated:
        return [_single(field, one) for one in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return b64encode(value).decode() if isinstance(value, bytes) else value
