"""Redis and the messages on it: who may send what, and what becomes of it."""
