"""The process that speaks gRPC: receive, check, decode, preprocess, postprocess, reply."""
