"""Offline errors, all ConvoyErrors: the command line prints each as one line."""

from convoy.service.errors import ConvoyError


class BadTraining(ConvoyError):
    """The requested training settings are inconsistent."""

    reason = "BAD_TRAINING"


class TrainingStopped(ConvoyError):
    """Something outside a run ended it, such as a lack of memory or the death of another process."""

    reason = "TRAINING_STOPPED"


class BadRun(ConvoyError):
    """A folder does not contain a run of `convoy train`."""

    reason = "BAD_RUN"


class BadData(ConvoyError):
    """A data folder, or a file in it, is not valid for training."""

    reason = "BAD_DATA"


class BadCheckpoint(ConvoyError):
    """A checkpoint is missing, or was not written by `convoy train`."""

    reason = "BAD_CHECKPOINT"


class ParityRefused(ConvoyError):
    """The outputs of the exported graph differ from the network's."""

    reason = "PARITY_REFUSED"


class BadModelName(ConvoyError):
    """A model repository does not accept a model's name."""

    reason = "BAD_MODEL_NAME"


class BadWeights(ConvoyError):
    """A weights file does not fit the network, or cannot be read."""

    reason = "BAD_WEIGHTS"


class ImpossibleLayer(ConvoyError):
    """A layer cannot accept the output of the layer before it."""

    reason = "IMPOSSIBLE_LAYER"


class EmptyOutput(ImpossibleLayer):
    """A layer's windows do not fit into its feature maps, or its output is empty."""


class BadNetworkFile(ConvoyError):
    """A file is not a network, or not one that can be analysed."""

    reason = "BAD_NETWORK_FILE"


class BadTemplate(ConvoyError):
    """A picture cannot be used as a template."""

    reason = "BAD_TEMPLATE"


class BadView(ConvoyError):
    """The requested part is not in the network, or cannot be visualised."""

    reason = "BAD_VIEW"


class VariantRefused(ConvoyError):
    """A network cannot be exported in the requested precision, or is too inaccurate in it."""

    reason = "VARIANT_REFUSED"
