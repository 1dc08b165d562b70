"""How fast and how small the service is: `python -m bench` measures and prints one table. No test asserts a time."""
