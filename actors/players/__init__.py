"""Who can take a role: a policy behind an engine, a remote API, the uniform random player."""
