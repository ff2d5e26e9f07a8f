"""Garbage collection: what no application keeps goes to trash, and later for good."""
