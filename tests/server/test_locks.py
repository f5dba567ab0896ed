import pytest

from larf_curate.errors import ReviewServerError
from larf_curate.server.locks import is_locked, locked, try_lock


def test_a_lock_is_held_once_and_looking_does_not_disturb(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    with locked(path, timeout=1):
        assert is_locked(path)
        assert try_lock(path) is None
        with pytest.raises(ReviewServerError, match="another process holds"), locked(path, timeout=0.1):
            pass
    assert not is_locked(path)
