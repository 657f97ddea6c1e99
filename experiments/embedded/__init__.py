"""PGD-AT, PIAT and PIAT+NMSE on the data inside the package."""
