"""Judges: what they are asked, how replies become judgments, panels, grades and ratings."""
