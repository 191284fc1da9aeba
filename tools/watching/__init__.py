"""Dashboards, recording rules and alerts, made from the table of metrics."""
