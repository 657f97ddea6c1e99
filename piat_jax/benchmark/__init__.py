"""Throughput: implementations of one piece of work, measured in turn."""
