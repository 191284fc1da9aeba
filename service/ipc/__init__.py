"""Messages, records and memory shared between processes."""
