"""Analysis of networks: their operations, the cost of each, and the receptive field of each output."""
