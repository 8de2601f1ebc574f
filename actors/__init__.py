"""The running system: engines, players, the runner, the ledger and the tracker."""
