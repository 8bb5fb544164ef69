"""What experiments.sweep alone uses."""
