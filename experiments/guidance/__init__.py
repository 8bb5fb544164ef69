"""What experiments.guide alone uses."""
