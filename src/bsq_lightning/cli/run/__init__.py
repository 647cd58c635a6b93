"""One run in its folder: settle, check, train its stages, sum up."""
