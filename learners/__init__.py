"""From judgments to gradients: samples, advantages, losses, and the DeepSpeed ranks."""
