"""What the scores, the columns and the settings of a report mean, in words."""

SCORES = {
    "top1": "share of {kind} whose most probable class is right",
    "top5": "share of {kind} with the right class among the five most probable",
    "calibration_error": "how far confidence is from the share that is right: 15 bins, mean over {counted}",
    "pixel_accuracy": "share of pixels whose class is right",
    "mean_iou": "intersection over union, mean of all classes with the background, over all pixels of the split",
    "boundary_f1": "outlines within 0.75 % of the diagonal of the true ones, mean over {kind}",
}

COLUMNS = {
    "precision": "of what was predicted as the class, the share that is right",
    "recall": "of what is of the class, the share that was found",
    "f1": "harmonic mean of precision and recall",
    "iou": "pixels in both prediction and truth, as a share of those in either",
    "boundary_f1": "the same for outlines, within 0.75 % of the diagonal",
    "support": "how many are of the class",
}

SETTINGS = {
    "architecture": "the network",
    "arguments": "of the network",
    "data": "the data set",
    "seed": "of the initial weights, the order and the augmentation",
    "size": "of the input, height and width",
    "transfer.checkpoint": "the network whose weights this one began with",
    "transfer.freeze": "the part of it that was not trained",
    "transfer.freeze_epochs": "epochs for which it was not trained",
    "transfer.body_rate": "its learning rate, as a multiple",
    "recipe.epochs": "passes over the training data, at most",
    "recipe.optimizer": "how weights follow from gradients",
    "recipe.learning_rate": "at its peak",
    "recipe.weight_decay": "share by which weights shrink per step, per learning rate",
    "recipe.batch_size": "images per batch",
    "recipe.accumulate": "batches per step",
    "recipe.precision": "bits of the arithmetic",
    "recipe.clip": "largest norm of the gradient",
    "recipe.schedule": "how the learning rate changes with the steps",
    "recipe.warm_up": "share of the steps in which the learning rate rises",
    "recipe.ema": "decay of the moving average of the weights",
    "recipe.keep": "best checkpoints that are kept",
    "recipe.patience": "epochs without improvement after which training stops",
    "recipe.loss": "what training minimises",
    "recipe.gamma": "how much the focal loss favours hard examples",
    "recipe.class_weights": "balanced: rare classes count more",
    "recipe.crop": "side of the squares cut from the images",
    "recipe.augmentation.flip": "half of the images are mirrored along these axes",
    "recipe.augmentation.random_crop": "smallest window that replaces an image, as a share of its area; 1: none",
    "recipe.augmentation.scale": "factors by which images are enlarged",
    "recipe.augmentation.rotate": "largest rotation, in degrees",
    "recipe.augmentation.colour": "largest change of brightness, contrast and saturation, as a share",
    "recipe.augmentation.erase": "share of images with a rectangle of noise",
    "recipe.augmentation.mixup": "how strongly pairs of images are blended; 0: not",
    "recipe.augmentation.label_smoothing": "share of the target spread over all classes",
}


def setting(name: str) -> str:
    """Returns what a setting means; empty if that is not known here."""
    return SETTINGS.get(name) or SETTINGS.get(name.partition(".")[0], "")
