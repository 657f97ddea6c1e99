"""What an item finds out about its runs beside their accuracies, and how it draws that."""
