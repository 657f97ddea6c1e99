"""What a run would need on a GPU or TPU that is not here: XLA compiles its programs for it, and this reads them.

What comes out is memory, kernels and collectives of the very programs that would run, and lower bounds of their time.
"""
