"""How Alembic runs here: on the connection that lodestar_services.feedback.database hands it, in one transaction."""

from alembic import context

from lodestar_services.feedback.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
