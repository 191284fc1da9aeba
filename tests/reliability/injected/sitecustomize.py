"""Imported by each process of a server under test before anything else: lets it be harmed. See injection.py."""

from tests.reliability import injection

injection.begin()
