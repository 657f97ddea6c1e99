"""The PIAT paper's toy study, its Figs. 2 to 5."""
