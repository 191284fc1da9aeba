"""The commands below `convoy visualize`."""
