"""Evaluation: a benchmark as a file, run item by item, scored by the benchmark's own rule, never by a guess."""
