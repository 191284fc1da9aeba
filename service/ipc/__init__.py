"""What two processes share: messages, records and memory."""
