"""Tasks: targets, evaluation and description of what a student is trained for."""
