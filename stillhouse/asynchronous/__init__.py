"""The asynchronous client; `stillhouse.synchronous` is generated from it by `scripts/sync_client.py`."""
