"""One class per thing that a caller or an operator can act on. Nothing here knows of gRPC.

A message names the value and what was wanted, in one line; it never holds a path or an address of the server.
"""


class ConvoyError(Exception):
    """Anything Convoy tells a caller. `reason` is the machine-readable name of it."""

    reason = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after  # seconds after which trying again makes sense


class BadRequest(ConvoyError):
    """A field of the request is wrong."""

    reason = "BAD_REQUEST"


class BadImage(BadRequest):
    """The bytes are not an image that can be served."""

    reason = "BAD_IMAGE"


class BadTensor(BadRequest):
    """A tensor's name, dtype, shape or byte count is wrong."""

    reason = "BAD_TENSOR"


class UnknownModel(ConvoyError):
    """No such model or version is served."""

    reason = "UNKNOWN_MODEL"


class QueueFull(ConvoyError):
    """There is no room for another image now."""

    reason = "QUEUE_FULL"


class PredictedLate(ConvoyError):
    """The answer would come after the caller's deadline: it was refused before any work went into it."""

    reason = "PREDICTED_LATE"


class DeadlinePassed(ConvoyError):
    """The caller's deadline went by before the image ran."""

    reason = "DEADLINE_PASSED"


class ModelUnavailable(ConvoyError):
    """The model is loading, or the server is draining: another replica may answer."""

    reason = "MODEL_UNAVAILABLE"


class RunFailed(ConvoyError):
    """The network failed on this batch."""

    reason = "RUN_FAILED"


class EngineDied(RunFailed):
    """The engine died under it, too often to try again."""

    reason = "ENGINE_DIED"


class BadMetadata(ConvoyError):
    """The `convoy` document of a model file does not hold."""

    reason = "BAD_METADATA"


class BadModelFile(ConvoyError):
    """A model file cannot be served."""

    reason = "BAD_MODEL_FILE"


class BadConfig(ConvoyError):
    """A configuration key or value, or a start option, is wrong."""

    reason = "BAD_CONFIG"
