"""From tasks to recorded episodes: the runner, the rollout loop, staleness, filters and the ledger."""
