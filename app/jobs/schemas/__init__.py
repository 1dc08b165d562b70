"""Shapes of the jobs resource's requests and answers."""
