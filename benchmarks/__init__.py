"""Benchmarks: one command a file measures again what the documents claim."""
