"""A person takes a seat."""
