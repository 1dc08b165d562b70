"""Requests and responses of the jobs resource."""
