"""Errors in the files of a model."""

from __future__ import annotations


class InvalidModel(Exception):
    """The files are not a valid model; the text describes the error for the model's owner."""


class Misfit(Exception):
    """Weights don't fit the network; the text names the first one."""
