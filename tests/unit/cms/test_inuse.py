"""Files that the service has open."""

import pytest

from appliance.cms.inuse import keep_private
from appliance.errors import ConfigurationError


def test_a_file_whose_mode_cannot_be_set_is_told_in_one_sentence(tmp_path):
    """It is on a disk that is mounted read-only, or somebody else's."""
    with pytest.raises(
        ConfigurationError, match=r"^/proc/self/status: the file's mode cannot be set: .*; it must belong"
    ):
        keep_private("/proc/self/status")
    mine = tmp_path / "certs.db"
    mine.touch(mode=0o666)
    keep_private(str(mine))
    assert mine.stat().st_mode & 0o777 == 0o600
