"""Teachers: their sources, and the cache of their outputs."""
