"""Papers and measurements as runnable scripts."""
