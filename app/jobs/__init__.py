"""A job's life: legal moves, leases, events, metrics, and the resource that shows them."""
