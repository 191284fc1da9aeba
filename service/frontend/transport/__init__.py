"""The gRPC transport: messages in, messages out. Nothing above it depends on the library that it uses."""
