"""Every setting, with its default, its documentation and its range."""
