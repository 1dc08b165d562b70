"""Jobs: legal moves, leases, events, metrics, and their HTTP resource."""
