"""What the benchmarks share: timing and targets, models and protocols, simulated engines, the page of results."""
