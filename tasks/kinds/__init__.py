"""The kinds of task source."""
