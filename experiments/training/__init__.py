"""Training into a folder, resumed exactly."""
