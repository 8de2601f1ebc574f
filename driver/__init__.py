"""The driver process: the run, its stages, its checkpoints; joins actors and learners."""
