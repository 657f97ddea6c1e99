"""AutoAttack in PyTorch: what ours is compared with, for agreement and for speed."""
