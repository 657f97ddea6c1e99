"""Plan a run on a GPU or TPU that is not present: XLA compiles its programs for it, and this package reads them.

The results are memory, kernels and collectives of the same programs that would run, and lower bounds of their time.
"""
