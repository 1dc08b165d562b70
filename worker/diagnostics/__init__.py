"""Examinations of a trained model beyond its task's metrics."""
