"""What speaks gRPC: messages in, messages out. Nothing above knows which library does it."""
