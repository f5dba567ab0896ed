"""Checks of files before they are read, against `json` and plain loops."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larf_curate.data import screening
from larf_curate.data.screening import JsonScreen, TextScreen, check_parquet

TEXT = st.text(alphabet='ab"\\[]{},: \né', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=3)
LIMIT = 3


def depth(value) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(depth, parts), default=0)


def screened(screen: TextScreen, data: bytes, size: int = 8) -> str:
    """The message about data that comes in parts of a size, or nothing."""
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    try:
        assert list(screen.watch(chunks)) == chunks
    except ValueError as error:
        return str(error)
    return ""


@given(rows=st.lists(OBJECTS, min_size=1, max_size=5), size=st.integers(8, 60), ascii_only=st.booleans())
def test_nesting_is_that_of_json_and_named_by_line(rows, size, ascii_only):
    data = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()
    wrong = [line for line, row in enumerate(rows, 1) if depth(row) > LIMIT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "MAX_NESTING", LIMIT)
        said = screened(JsonScreen(), data, size)
    assert said == (f"line {wrong[0]} has lists and objects nested over {LIMIT} deep" if wrong else "")


@given(rows=st.lists(OBJECTS, max_size=5), indent=st.sampled_from([None, 0, 2]), size=st.integers(8, 60))
def test_a_list_of_objects_passes_and_one_with_another_value_does_not(rows, indent, size):
    assert screened(JsonScreen(), json.dumps(rows, indent=indent).encode(), size) == ""
    for value in (None, True, 7, "text"):
        said = screened(JsonScreen(), json.dumps([{"a": 1}, *rows, value, *rows], indent=indent).encode(), size)
        assert "outside of an object" in said


@given(texts=st.lists(TEXT, max_size=5), size=st.integers(8, 60))
def test_a_list_of_texts_passes(texts, size):
    assert screened(JsonScreen(), json.dumps(texts).encode(), size) == ""


@pytest.mark.parametrize("screen", [TextScreen, JsonScreen])
@given(sizes=st.lists(st.integers(10, 60), min_size=1, max_size=8), size=st.integers(8, 60))
def test_rows_over_the_limit_are_refused_by_line(screen, sizes, size):
    lines = [json.dumps({"a": "x" * (length - 9)}) for length in sizes]
    whole = [length + 1 for length in sizes[:-1]] + sizes[-1:]
    wrong = [line for line, length in enumerate(whole, 1) if length > 41]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "MAX_ROW_BYTES", 41)
        said = screened(screen(), "\n".join(lines).encode(), size)
    assert bool(said) == bool(wrong)
    assert not wrong or int(said.split()[4]) in wrong  # of several in one part, the largest is named


@pytest.mark.parametrize(
    "content", ["null", "7", '"a"', "x", "{}\nnull", '{"a": 1}null', "{}, {}", "[1]", "[null, {}]"]
)
def test_what_is_no_row_is_refused(content):
    assert screened(JsonScreen(), content.encode())


def test_a_line_that_is_not_closed_hides_no_nesting(monkeypatch):
    deep = b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}"
    for line in (b'{"a": "\n', b'{"a": "\\\n', b'{"a": "\\"}\n'):
        assert "nested over 60 deep" in screened(JsonScreen(), b"{}\n" + line + deep)


@pytest.mark.parametrize(("size", "wanted"), [(10, 1000), (8_000, (250, 600)), (5_000_000, 2)])
def test_fewer_rows_of_a_parquet_file_are_decoded_together_if_they_are_large(tmp_path, size, wanted):
    indices = pa.array([0] * 30, pa.int32())
    shared = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * size]))
    pq.write_table(pa.table({"text": shared}), tmp_path / "a.parquet")
    rows = check_parquet(tmp_path / "a.parquet", tmp_path)
    assert wanted[0] < rows < wanted[1] if isinstance(wanted, tuple) else rows == wanted


def test_a_parquet_file_without_rows_is_read(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    assert check_parquet(tmp_path / "rows.parquet", tmp_path) >= 2
