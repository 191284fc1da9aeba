"""Built-in data sets, generated or bundled: nothing has to be downloaded."""
