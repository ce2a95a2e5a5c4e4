"""Run the migrations on the connection that `aggregator.database.upgrade` hands over, inside its transaction."""

from alembic import context

from aggregator.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
