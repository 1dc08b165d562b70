"""The asynchronous client; `stillhouse.synchronous` is made from it by `scripts/sync_client.py`."""
