"""Alembic's migrations; a change of tables.py is a new file in versions/."""
