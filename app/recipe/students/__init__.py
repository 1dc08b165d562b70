"""Students and stored models: architectures, their shapes and costs."""
