"""Measurements: each module is a command that prints a table and writes what it measured to ``docs/benchmarks/``."""
