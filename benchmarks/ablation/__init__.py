"""What to learn with: methods compared on equal terms. `python -m benchmarks ablation --help`."""
