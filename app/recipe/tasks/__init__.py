"""Tasks: what a student may be trained for."""
