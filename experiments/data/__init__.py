"""Data: readers of files, what is measured of them, and the way to model units."""
