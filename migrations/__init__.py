"""Migrations of the database's schema; `app.core.migrate` runs them."""
