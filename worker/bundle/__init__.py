"""The bundle of a trained student: export, verification by reloading, report and model card."""
