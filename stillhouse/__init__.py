"""The command line and the Python client. Both speak to the service over HTTP alone; only `up`, `serve`, `migrate` and
`doctor`, which concern the machine that they run on, look behind it."""
