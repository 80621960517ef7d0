"""Benchmarks: contestants that do the same work in different ways; nothing of Ray."""
