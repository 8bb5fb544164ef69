"""Side-by-side measurements: each script compares in one run and prints ratios."""
