import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larf_curate.review.records.escaping import html_literal, markdown_literal, pieces, shortened, storable
from tests.fixtures.review_rows import HOSTILE


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_text_is_stored_as_it_is(text):
    assert storable(text) == text


def test_only_nul_and_lone_surrogates_are_replaced():
    assert storable("a\0b\ud800c\udfffd") == "a␀b�c�d"
    assert storable("\ud83d\ude00") == "😀"  # two halves of one character


@given(st.text())
def test_markdown_shows_exactly_the_text_and_has_no_punctuation_to_read(text):
    literal = markdown_literal(text)
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"&#\d+;", "", literal))
    shown = html.unescape(literal)
    wanted = " ".join(storable(text).split())
    assert len(shown) == len(wanted)
    assert all(a == b or (a == "�" and not b.isprintable()) for a, b in zip(shown, wanted, strict=True))


def test_text_direction_controls_do_not_reach_the_evidence():
    assert markdown_literal("a\u202eb\u2066c\u200fd") == "a�b�c�d"


@given(st.text(alphabet="a&<>;é", max_size=50), st.integers(5, 20))
def test_pieces_are_html_of_the_text_each_by_itself(text, size):
    cut = pieces(html_literal(text), size)
    assert "".join(html.unescape(piece) for piece in cut) == text
    assert all(len(piece) <= size for piece in cut)


@given(st.text())
def test_html_shows_exactly_the_text_and_has_no_tag_to_read(text):
    assert "<" not in html_literal(text)
    assert html.unescape(html_literal(text)) == storable(text)


def test_a_shortened_text_keeps_both_ends_and_says_what_is_missing():
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    short = shortened(text, 100)
    assert short.startswith(text[:75])
    assert short.endswith(text[-25:])
    assert "900 characters not shown" in short
    assert shortened(text, 1000) == text
