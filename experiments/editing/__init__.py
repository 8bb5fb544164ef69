"""What experiments.edit and experiments.inverse use."""
