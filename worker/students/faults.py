"""What can be wrong with the files of a model."""

from __future__ import annotations


class InvalidModel(Exception):
    """The files do not make a model; the text says what is wrong, in words fit for the model's owner."""
