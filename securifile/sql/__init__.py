"""Facts in SQL: the tables that catalogue and index have in common, written once for PostgreSQL and SQLite."""
