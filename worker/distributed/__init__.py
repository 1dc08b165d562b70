"""One job on several processes and machines."""
