"""From judgments to rewards."""
