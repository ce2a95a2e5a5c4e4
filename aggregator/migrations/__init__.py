"""Alembic's migrations, packaged so that `serve` can bring any older database up to date."""
