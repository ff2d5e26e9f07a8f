"""Keep-sets: what each application refers to, published to Redis and read back whole or not at all."""
