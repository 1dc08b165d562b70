"""Training methods beyond a sum of losses."""
