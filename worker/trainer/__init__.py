"""The training process: it reads a staged folder, trains, checkpoints, evaluates, exports, and says so line by line."""
