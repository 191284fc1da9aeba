"""Bulk scoring: any number of images through a model file or a running server, into Parquet."""
