"""What is debated about: sources of tasks, and the verifiers of answers."""
