"""Claims a lease, starts the trainer, relays what it reports and publishes what it wrote. Imports no torch."""
