"""All that exists because XLA's compiler for CPUs is slow where it need not be."""
