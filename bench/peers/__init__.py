"""The same distillation in this trainer and in established engines: same losses to rounding, and seconds per step."""
