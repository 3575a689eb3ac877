"""A tuning run from end to end: prepare, train, decide, record, resume, export."""
