"""The DeepSpeed ranks of one learner, their group, and what they write to disk."""
