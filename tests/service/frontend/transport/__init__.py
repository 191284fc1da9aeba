"""Tests of the process that speaks gRPC."""
