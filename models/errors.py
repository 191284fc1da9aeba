"""What can go wrong offline, each a ConvoyError: the command line prints it as one line."""

from convoy.service.errors import ConvoyError


class BadTraining(ConvoyError):
    """What was asked to be trained does not go together."""

    reason = "BAD_TRAINING"


class TrainingStopped(ConvoyError):
    """Something outside a run ended it: too little memory, another process that has gone."""

    reason = "TRAINING_STOPPED"


class BadRun(ConvoyError):
    """A folder is not that of a run of `convoy train`."""

    reason = "BAD_RUN"


class BadData(ConvoyError):
    """A folder of pictures, or a file in it, is not as training wants it."""

    reason = "BAD_DATA"


class BadCheckpoint(ConvoyError):
    """A checkpoint is missing, or is not one that `convoy train` wrote."""

    reason = "BAD_CHECKPOINT"


class ParityRefused(ConvoyError):
    """The exported graph does not answer as the network does."""

    reason = "PARITY_REFUSED"


class BadModelName(ConvoyError):
    """A model's name is not one that a model repository takes."""

    reason = "BAD_MODEL_NAME"


class BadWeights(ConvoyError):
    """A file of weights is not one of this network, or cannot be read."""

    reason = "BAD_WEIGHTS"


class ImpossibleLayer(ConvoyError):
    """A layer cannot take what the one before it answers."""

    reason = "IMPOSSIBLE_LAYER"


class NothingLeft(ImpossibleLayer):
    """A layer's windows do not fit into its maps, or nothing of them is left."""


class BadNetworkFile(ConvoyError):
    """A file is no network, or not one that can be looked into."""

    reason = "BAD_NETWORK_FILE"


class BadTemplate(ConvoyError):
    """A picture that nothing can be found with."""

    reason = "BAD_TEMPLATE"


class BadView(ConvoyError):
    """What was asked to be looked at is not in the network, or cannot be shown of it."""

    reason = "BAD_VIEW"


class VariantRefused(ConvoyError):
    """A network cannot be had in the precision that was asked for, or answers too badly in it."""

    reason = "VARIANT_REFUSED"
