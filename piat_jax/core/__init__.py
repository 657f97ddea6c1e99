"""Contracts and small tools that every other package may use; imports nothing else from the library."""
