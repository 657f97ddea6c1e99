"""The tables and figures of the RPAT paper."""
