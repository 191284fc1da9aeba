"""The `convoy` command: finds the chosen command's module; turns errors into one line and an exit code."""
