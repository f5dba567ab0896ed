import os
import shutil

import pytest

from larf_curate import verification
from larf_curate.files import sha256
from larf_curate.verification import is_unchanged, without_verification

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def settled(monkeypatch):
    """Files whose last change is at once long ago."""
    monkeypatch.setattr(verification, "SETTLED_NS", -(10**18))


@pytest.fixture
def reads(monkeypatch):
    """Files that were read, in order."""
    read = []

    def counted(path):
        read.append(path)
        return sha256(path)

    monkeypatch.setattr(verification, "sha256", counted)
    return read


def marks(own_caches):
    return sorted(path.name for path in (own_caches / "verified").glob("*"))


def test_a_verified_file_is_not_read_again(file, settled, reads, own_caches):
    digest = sha256(file)
    assert is_unchanged(file, digest)
    assert is_unchanged(file, digest)
    assert reads == [file]
    assert len(marks(own_caches)) == 1


def test_a_file_that_may_still_change_within_a_tick_of_the_clock_is_read_again(file, reads, own_caches, monkeypatch):
    monkeypatch.setattr(verification, "SETTLED_NS", 10**18)
    assert is_unchanged(file, sha256(file))
    assert is_unchanged(file, sha256(file))
    assert reads == [file, file]
    assert marks(own_caches) == []


def test_a_change_is_found_even_if_size_and_modification_time_are_restored(file, settled):
    digest, times = sha256(file), file.stat()
    assert is_unchanged(file, digest)
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert not is_unchanged(file, digest)
    file.write_bytes(b"content")
    assert is_unchanged(file, digest)


def test_another_file_in_its_place_is_found(file, settled, tmp_path):
    digest = sha256(file)
    assert is_unchanged(file, digest)
    (tmp_path / "other").write_bytes(b"CONTENT")
    shutil.copystat(file, tmp_path / "other")
    os.replace(tmp_path / "other", file)
    assert not is_unchanged(file, digest)


def test_a_file_is_remembered_with_its_digest_and_never_if_it_differs(file, settled, own_caches):
    assert not is_unchanged(file, "ab" * 32)
    assert marks(own_caches) == []
    assert is_unchanged(file, sha256(file))
    assert not is_unchanged(file, "ab" * 32)


def test_a_file_that_changes_while_it_is_read_is_changed(file, settled, own_caches, monkeypatch):
    digest = sha256(file)

    def read_then_grown(path):
        found = sha256(path)
        path.write_bytes(b"content and more")
        return found

    monkeypatch.setattr(verification, "sha256", read_then_grown)
    assert not is_unchanged(file, digest)
    assert marks(own_caches) == []


def test_what_cannot_be_read_is_changed(file, tmp_path):
    assert not is_unchanged(tmp_path / "gone", "ab" * 32)
    assert not is_unchanged(tmp_path, "ab" * 32)


def test_nothing_is_read_and_all_is_taken_for_unchanged_without_verification(file, settled, reads, own_caches):
    with without_verification():
        assert is_unchanged(file, "ab" * 32)
        assert is_unchanged(file.with_name("gone"), "ab" * 32)
    assert reads == []
    assert marks(own_caches) == [], "a file that was not verified must not be remembered"
    assert not is_unchanged(file, "ab" * 32), "verification is on again"


def test_verification_is_on_again_after_an_error(file):
    with pytest.raises(KeyError), without_verification():
        raise KeyError
    assert not is_unchanged(file, "ab" * 32)


def test_the_oldest_half_is_forgotten_beyond_the_limit(tmp_path, settled, reads, own_caches, monkeypatch):
    monkeypatch.setattr(verification, "MAX_REMEMBERED", 4)
    files = [tmp_path / f"{index}" for index in range(5)]
    for index, path in enumerate(files):
        path.write_bytes(b"%d" % index)
        known = set(marks(own_caches))
        assert is_unchanged(path, sha256(path))
        for mark in set(marks(own_caches)) - known:  # marks of one tick would have no order
            os.utime(own_caches / "verified" / mark, ns=(index, index))
    assert len(marks(own_caches)) == 3
    reads.clear()
    assert all(is_unchanged(path, sha256(path)) for path in files[2:])
    assert reads == [], "the newest ones are known"
    assert is_unchanged(files[0], sha256(files[0]))
    assert reads == [files[0]]


def test_a_cache_that_cannot_be_written_does_not_matter(file, settled, reads, own_caches):
    own_caches.write_text("a file where the folder would be")
    assert is_unchanged(file, sha256(file))
    assert is_unchanged(file, sha256(file))
    assert reads == [file, file]


def test_a_file_of_another_size_is_not_read(file, reads):
    assert not is_unchanged(file, sha256(file), size=8)
    assert not reads
    assert is_unchanged(file, sha256(file), size=7)
