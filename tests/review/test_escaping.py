import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larf_curate.review.records.escaping import escape_html, escape_markdown, split_html, storable, truncate_middle
from tests.fixtures.review_rows import HOSTILE


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_text_is_stored_as_it_is(text):
    assert storable(text) == text


def test_only_nul_and_lone_surrogates_are_replaced():
    assert storable("a\0b\ud800c\udfffd") == "a␀b�c�d"
    assert storable("\ud83d\ude00") == "😀"  # two halves of one character


@given(st.text())
def test_markdown_shows_exactly_the_text_and_has_no_punctuation_to_read(text):
    literal = escape_markdown(text)
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"&#\d+;", "", literal))
    shown = html.unescape(literal)
    wanted = " ".join(storable(text).split())
    assert len(shown) == len(wanted)
    assert all(a == b or (a == "�" and not b.isprintable()) for a, b in zip(shown, wanted, strict=True))


def test_text_direction_controls_do_not_reach_the_evidence():
    assert escape_markdown("a\u202eb\u2066c\u200fd") == "a�b�c�d"


@given(st.text(alphabet="a&<>;é", max_size=50), st.integers(5, 20))
def test_each_part_of_split_html_is_html_of_its_part_of_the_text(text, size):
    cut = split_html(escape_html(text), size)
    assert "".join(html.unescape(piece) for piece in cut) == text
    assert all(len(piece) <= size for piece in cut)


@given(st.text())
def test_html_shows_exactly_the_text_and_has_no_tag_to_read(text):
    assert "<" not in escape_html(text)
    assert html.unescape(escape_html(text)) == storable(text)


def test_a_shortened_text_keeps_both_ends_and_says_what_is_missing():
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    short = truncate_middle(text, 100)
    assert short.startswith(text[:75])
    assert short.endswith(text[-25:])
    assert "900 characters not shown" in short
    assert truncate_middle(text, 1000) == text
