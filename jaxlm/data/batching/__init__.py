"""Orders, mixtures, length buckets and packed rows."""
