"""Benchmarks of the service's speed and size: `python -m bench` prints one table. No test asserts a time."""
