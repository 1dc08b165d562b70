"""The same distillation in this trainer and in established engines: equal losses up to rounding, and seconds per
step."""
