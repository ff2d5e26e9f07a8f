"""Directories of files into a store, and out of it."""
