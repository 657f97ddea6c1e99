"""The papers' figures and tables, as data."""
