"""Builds a report from a paper's items: runs, their numbers next to the published ones, figures."""
