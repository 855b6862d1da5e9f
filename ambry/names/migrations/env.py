"""Run by alembic, and by nobody else: hands it the connection that schema.py has opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
