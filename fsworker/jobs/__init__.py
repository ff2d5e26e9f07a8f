"""Jobs: from a request in the spool to its outcome."""
