"""What checks the annotations of arrays at run time; tests/conftest.py says where."""

from beartype import BeartypeConf, beartype

# As in Python's own numeric tower, an int will do where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
