"""Mirrors of the run folder for people who watch elsewhere. Each is imported by its config, with what it logs to."""
