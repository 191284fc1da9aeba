"""Tests of the HTTP API of a front end."""
