"""Answers, numbers and pictures of the test split; stage evaluate."""
