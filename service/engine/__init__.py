"""The process that owns one device: queue, batch, run."""
