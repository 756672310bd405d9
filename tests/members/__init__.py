"""Databases that share the keys of one secret."""
