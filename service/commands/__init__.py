"""One module per command of `convoy`; each is imported when its command is chosen."""
