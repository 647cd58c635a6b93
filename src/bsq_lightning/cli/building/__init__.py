"""Objects from a config: one function for each, so that all commands build the same things."""
