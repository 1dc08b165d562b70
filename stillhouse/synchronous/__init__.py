"""The blocking client, generated from `stillhouse.asynchronous` by `scripts/sync_client.py`."""
