"""Losses of tokens and of pairs."""
