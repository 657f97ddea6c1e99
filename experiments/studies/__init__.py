"""Studies of an item's runs beyond their accuracies, with figures."""
