"""Choosing which requests run together, and when: plain code without clocks, locks or I/O."""
