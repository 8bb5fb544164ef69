"""Samples, likelihoods and distances of many examples, batch by batch."""
