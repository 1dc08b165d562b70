"""The training process: reads a staged folder, trains, checkpoints, evaluates, exports, and reports line by line."""
