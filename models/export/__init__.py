"""Export of a checkpoint to a model repository: the graph, its variants and their checks."""
