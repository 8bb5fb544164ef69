"""Models: the flags that describe them, how they are built, trained objectives, and how they are opened again."""
