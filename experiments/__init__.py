"""Runnable experiments: what each measures is in its folder, with the results and the hardware they came from."""
