"""The commands of `convoy`, a module each, imported when the command is chosen; and what they are made of."""
