"""scoresde beside its peers from PyPI: ``python -m experiments.benchmarks.peers``; see ``__main__``."""
