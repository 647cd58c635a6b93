"""Benchmarks: ``python -m benchmarks [ROW ...] [--quick] [--threads N] [--device cpu|cuda] [--out FOLDER]``."""
