"""Tests of the process that owns a device."""
