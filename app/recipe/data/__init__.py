"""Data: sources of samples, reading and augmentation."""
