"""Experiments as config files: one per data set and architecture; the method follows after the colon."""
