"""Where batches come from: guarded reading of archives, hold-out, preprocessing, order of the samples."""
