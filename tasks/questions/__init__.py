"""Questions of one's own, from files: rows, how their fields become tasks, and exact checks of answers."""
