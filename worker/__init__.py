"""The training side: supervisors and trainers."""
