"""What can be said before a run starts: the plan, and whether the machine is ready."""
