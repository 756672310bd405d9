"""A small clinic: an application with its own tables, history and sessions, and encrypted visits beside them."""
