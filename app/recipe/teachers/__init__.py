"""Teachers: where they come from and how their outputs are cached."""
