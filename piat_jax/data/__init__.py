"""Data sets in memory, and what turns them into augmented batches on the device."""
