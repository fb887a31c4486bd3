"""Alembic's side of the database; `appliance.cms.schema.migrate` runs it."""
