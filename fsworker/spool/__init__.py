"""The spool: where an application puts uploads, and what is asked for each."""
