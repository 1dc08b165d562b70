"""Claims a lease, starts the trainer, relays its reports and publishes its files. Imports no torch."""
