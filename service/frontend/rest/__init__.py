"""The HTTP API of a front end: a translation of HTTP requests to the methods that serve gRPC."""
