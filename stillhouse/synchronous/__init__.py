"""The blocking client, made from `stillhouse.asynchronous` by `scripts/sync_client.py`."""
