"""The contract that every protocol keeps: `suite.violations` checks one, `mutants` shows that the suite bites."""
