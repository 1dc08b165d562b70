"""PostgreSQL tells whoever listens of every new event of a job."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Equal messages of one transaction are one, and they are sent when it commits.
FUNCTION = """
CREATE FUNCTION stillhouse_ring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('stillhouse_events', NEW.job_id);
  RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER job_events_ring AFTER INSERT ON job_events FOR EACH ROW EXECUTE FUNCTION stillhouse_ring()
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":  # a reader of SQLite looks at its counter of changes
        op.execute(FUNCTION)
        op.execute(TRIGGER)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER job_events_ring ON job_events")
        op.execute("DROP FUNCTION stillhouse_ring()")
