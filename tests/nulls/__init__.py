"""No expression, input, key or setting turns a value into NULL. The oracle is SQL and Python of these tests alone."""
