"""Recommendations of recipes, learned from the finished jobs of a project (AutoDistiller, arXiv 2109.11105)."""
