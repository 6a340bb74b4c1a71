"""Batch files: many requests from a file to a file."""
