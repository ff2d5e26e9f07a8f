"""Processes on a host: servers, workers, what watches and ends them."""
