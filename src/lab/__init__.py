"""Sweeps, studies and benchmarks. Nothing imports it: without it everything else works."""
