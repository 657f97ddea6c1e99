"""How fast things run."""
