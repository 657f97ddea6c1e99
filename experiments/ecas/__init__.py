"""The tables and figures of the ECAS paper."""
