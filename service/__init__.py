"""Convoy's server and client: answers image requests over gRPC in batches. Never imports torch, onnx or `models`."""
