"""How requests reach engines: router, wire, and lanes of policies that share an engine."""
