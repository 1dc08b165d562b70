"""Data: where samples come from, how they are read and changed."""
