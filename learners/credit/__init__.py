"""Episodes to training samples: signals, advantages, pairs."""
