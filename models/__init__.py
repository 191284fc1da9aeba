"""Networks, their training, evaluation and export. Runs offline; imports torch."""
