"""Alignment terms, one file a kind."""
