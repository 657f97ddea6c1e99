"""Experiments as config files: one per data set and architecture, the method chosen after the colon."""
