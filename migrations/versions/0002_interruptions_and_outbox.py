"""Ends that a job did not cause are counted apart; messages are set aside; files and parts are found by their key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("interruptions", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("death_phase", sa.String(length=24), nullable=True))
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.add_column(sa.Column("last_error", sa.String(length=1024), nullable=True))
        batch_op.add_column(sa.Column("set_aside_at", sa.Double(), nullable=True))
    op.create_index(op.f("ix_files_key"), "files", ["key"], unique=False)
    op.create_index(op.f("ix_upload_parts_key"), "upload_parts", ["key"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_upload_parts_key"), table_name="upload_parts")
    op.drop_index(op.f("ix_files_key"), table_name="files")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_column("set_aside_at")
        batch_op.drop_column("last_error")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("death_phase")
        batch_op.drop_column("interruptions")
