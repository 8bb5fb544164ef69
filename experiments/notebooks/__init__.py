"""Notebooks: each is a plain Python source in percent format, from which ``build`` makes the ``.ipynb`` beside it."""
