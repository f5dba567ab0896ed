import hashlib
import multiprocessing
import os
import signal
import threading

import pytest

from larf_curate.errors import InputError
from larf_curate.files import (
    MAX_JSON_BYTES,
    atomic_path,
    cache_home,
    read_json,
    remove_temporary_files,
    sha256,
    write_json,
)


def test_json_comes_back_as_it_was_in_plain_ascii(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": "ä \ud800 \x00 😀"}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value
    assert (tmp_path / "deep" / "x.json").read_bytes().isascii()
    assert list(read_json(tmp_path / "deep" / "x.json")) == ["b", "a"]


def test_json_that_is_missing_or_damaged_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_json(tmp_path / "no.json")
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "x.json")
    (tmp_path / "y.json").write_bytes(b'"\xff\xfe"')
    with pytest.raises(InputError, match="cannot read .*y.json"):
        read_json(tmp_path / "y.json")


@pytest.mark.parametrize("text", ["NaN", '{"a": -Infinity}', "[1e400]", "[" * 20_000, "[" * 70 + "]" * 70, "9" * 5000])
def test_numbers_that_json_does_not_know_and_deep_nesting_are_refused_in_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="not valid JSON") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    with pytest.raises(KeyError):
        write_half(tmp_path / "x.json")
    assert os.listdir(tmp_path) == ["x.json"]
    assert read_json(tmp_path / "x.json") == 1


def write_half(path):
    with atomic_path(path) as aside:
        aside.write_text("half")
        raise KeyError


def write_and_die(path):
    """What runs in a process of its own."""
    with atomic_path(path) as aside:
        aside.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_removed_by_the_next_one_and_what_others_write_is_not(tmp_path):
    path = tmp_path / "x[1].json"
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(path,))
    process.start()
    process.join()
    [left] = os.listdir(tmp_path)
    (tmp_path / ".y.json.12345678.tmp").touch()
    with atomic_path(path) as other:
        other.write_text("2")
        assert other.name != left
        assert sorted(os.listdir(tmp_path)) == sorted([other.name, ".y.json.12345678.tmp"])
        write_json(path, 1)
        assert other.read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == [".y.json.12345678.tmp", path.name]
    assert path.read_text() == "2"


def die_before_the_rename(path):
    """What runs in a process of its own."""
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, 1)


@pytest.mark.parametrize("by_name", [True, False])
def test_what_a_writer_left_that_was_killed_before_the_rename_is_removed_too(tmp_path, by_name):
    path = tmp_path / "x[1].json"
    process = multiprocessing.get_context("fork").Process(target=die_before_the_rename, args=(path,))
    process.start()
    process.join()
    assert os.listdir(tmp_path)[0].endswith(".new")
    (tmp_path / ".mine.tmp").touch()
    if by_name:
        write_json(path, 2)
    else:
        remove_temporary_files(tmp_path)
    assert {*os.listdir(tmp_path)} == {".mine.tmp", *([path.name] if by_name else [])}


def test_a_new_file_that_another_process_takes_for_abandoned_is_created_again(tmp_path, monkeypatch):
    replaced, lost = os.replace, []

    def remove_first(source, target):
        if not lost:
            lost.append(source)
            os.unlink(source)
        replaced(source, target)

    monkeypatch.setattr(os, "replace", remove_first)
    write_json(tmp_path / "x.json", 1)
    assert lost
    assert os.listdir(tmp_path) == ["x.json"]


def test_several_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    failed = []

    def write(number):
        try:
            for _ in range(50):
                write_json(tmp_path / "x.json", {"number": number})
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert read_json(tmp_path / "x.json")["number"] in range(4)
    assert os.listdir(tmp_path) == ["x.json"]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "a"))
    assert cache_home() == tmp_path / "a"
    monkeypatch.setenv("LARF_CURATE_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_home() == tmp_path / "b" / "larf-curate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_home() == tmp_path / "c" / ".cache" / "larf-curate"


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "loop"])
def test_what_is_no_file_or_too_large_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "record.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(MAX_JSON_BYTES + 1)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path}[kind])
    with pytest.raises(InputError, match=r"record\.json"):
        read_json(path)
    if kind != "large":
        with pytest.raises(OSError, match=r"regular|loop|symbolic|Too many"):
            sha256(path)


def test_devices_and_folders_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        write_json(tmp_path / "pipe", {})
    assert not list(tmp_path.glob(".*"))
