"""Opponent checkpoints: which are kept, who meets whom, and ratings."""
