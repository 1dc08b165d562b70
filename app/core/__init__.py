"""What every resource stands on: settings, database, object store, ids, the clock, errors, the outbox."""
