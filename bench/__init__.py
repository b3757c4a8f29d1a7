"""Benchmarks: each compares Valv with a peer or a limit measured in the same run, and prints the ratios."""
