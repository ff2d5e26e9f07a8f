"""The store: contents under the names of their hashes, durable, immutable, never absent."""
