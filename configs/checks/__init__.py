"""Checks across settings: whether a configuration that is well formed can also do what it says."""
