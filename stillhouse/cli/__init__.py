"""The command line `stillhouse`."""
