"""From a checkpoint to a version in a model repository: the graph, its variants, and what each was checked against."""
