"""The `convoy` command: finds the module of the command that was chosen, and turns errors into one line and an exit code."""
