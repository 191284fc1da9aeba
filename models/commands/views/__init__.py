"""The subcommands of `convoy visualize`."""
