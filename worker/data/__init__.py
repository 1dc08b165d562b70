"""Data of a job: reading files, hold-out, preprocessing, order of the samples, batches."""
