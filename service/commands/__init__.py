"""The commands of `convoy`, one module each, imported when the command is chosen; and their shared modules."""
