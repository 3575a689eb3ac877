"""What a disk does wrong, told in one line."""

import pytest

from harness.errors import UserError
from harness.files import user_errors


def test_a_full_disk_that_storage_libraries_tell_as_a_wrong_value_is_one_line_too():
    with pytest.raises(UserError, match="here: file too large"), user_errors("here"):
        raise ValueError("OUT_OF_RANGE: Failed to write 17797 bytes [os_error_code='27']")
    with pytest.raises(ValueError, match="something else"), user_errors("here"):
        raise ValueError("something else [os_error_code='9999']")
