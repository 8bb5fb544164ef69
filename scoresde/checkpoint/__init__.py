"""Pytrees to disk and back, bit for bit, and never half of one (Orbax)."""

from scoresde.checkpoint.folder import Writer as Writer
from scoresde.checkpoint.folder import read_arrays as read_arrays
from scoresde.checkpoint.folder import read_metadata as read_metadata
from scoresde.checkpoint.folder import restore as restore
from scoresde.checkpoint.folder import save as save
