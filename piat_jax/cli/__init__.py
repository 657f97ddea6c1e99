"""The commands; the only package that imports absl and ml_collections."""
