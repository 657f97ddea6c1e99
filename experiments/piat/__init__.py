"""The figures of the PIAT paper."""
