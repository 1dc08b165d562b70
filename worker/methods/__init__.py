"""Training methods: programs that change the loop itself."""
