"""Runnable experiments: what was measured, and on what, is in results/, apart from the code."""
