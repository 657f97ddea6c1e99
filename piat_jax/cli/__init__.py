"""The commands. Only this package defines absl flags."""
