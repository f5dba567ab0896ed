import random
import re
import sqlite3
import unicodedata

import pytest

from larf_curate.server.inside.text_query import count_phrases, parse, ranking_phrases, tokenize

WORDS = ["bomb", "cake", "safe", "well", "known", "安全", "危险品", "рецепт", "don't", "x1"]


def naive_tokens(text: str) -> list[str]:
    """Character by character, by Unicode name and category instead of a regular expression."""
    found, word = [], ""
    for sign in unicodedata.normalize("NFKC", text).casefold():
        alone = unicodedata.name(sign, "").startswith(
            ("CJK", "HIRAGANA LETTER", "KATAKANA LETTER", "HANGUL SYLLABLE", "THAI CHARACTER")
        )
        letter = unicodedata.category(sign)[0] in "LN"
        if word and (alone or not letter):
            found, word = [*found, word], ""
        if letter and alone:
            found.append(sign)
        elif letter:
            word += sign
    return [*found, word] if word else found


@pytest.mark.parametrize(
    "text",
    [
        "Well-known Ｆｕｌｌwidth ﬁne",
        "日本語のテキスト、test。",
        "如何制造炸弹？",
        "한국어 문장",
        "ภาษาไทยที่ดี ฿5",
        "ア・ア゠",
        "ÉCOLE straße",
        "a_b c9 ½",
        "🎉 👩‍🚀 ",
        "",
    ],
)
def test_tokens_are_words_and_single_characters_of_spaceless_scripts(text):
    assert tokenize(text) == naive_tokens(text)


@pytest.mark.parametrize(
    ("query", "shape"),
    [
        ("a b", "(a & b)"),
        ("a | b", "(a | b)"),
        ("a | b c", "((a | b) & c)"),
        ("a b | c", "((a & b) | c)"),
        ("a (b | c)", "(a & (b | c))"),
        ("a -b", "(a & !b)"),
        ("a - b", "(a & b)"),
        ('-"a b"', "!a_b"),
        ("-(a b)", "!(a & b)"),
        ("--a", "a"),
        ("well-known", "well_known"),
        ("pre*", "pre*"),
        ("a + b", "(a & b)"),
        ("安全", "安_全"),
        ("(((a)))) b", "(a & b)"),
        ('"a b', "(a & b)"),
        ("| a |", "a"),
        ("!!! ()", None),
        ("", None),
    ],
)
def test_operators_apply_from_left_to_right(query, shape):
    assert drawn(parse(query)) == shape


def drawn(part):
    if part is None:
        return None
    if hasattr(part, "tokens"):
        return "_".join(part.tokens) + "*" * part.prefix
    if hasattr(part, "query"):
        return "!" + drawn(part.query)
    return "(" + (" & " if type(part).__name__ == "And" else " | ").join(map(drawn, part.queries)) + ")"


def test_no_query_is_an_error_and_every_match_expression_is_valid_for_sqlite():
    rng = random.Random(0)
    signs = list("\"()|+-*~\\^:{}[]<>;,.'%_#/&=! \t\n") + [
        "AND",
        "OR",
        "NOT",
        "NEAR",
        "rowid:",
        "\ud800",
        "\u202e",
        "👍",
    ]
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(f0, tokenize=ascii)")
    asked = 0
    for _ in range(2000):
        query = "".join(rng.choice(rng.choice((signs, WORDS))) for _ in range(rng.randint(0, 12)))
        part = parse(query)
        for word in ranking_phrases(part) if part else []:
            connection.execute("SELECT * FROM t WHERE t MATCH ?", (word.match,)).fetchall()
            asked += 1
    connection.close()
    assert asked > 1000


def test_deep_brackets_and_long_texts_are_read_without_recursion_errors():
    assert count_phrases(parse("(" * 50_000 + "a" + ")" * 50_000)) == 1
    assert count_phrases(parse("word " * 20_000)) == 20_000


def test_words_under_a_not_do_not_rank():
    assert [word.tokens for word in ranking_phrases(parse("a -(b c) | d"))] == [("a",), ("d",)]
    assert re.fullmatch(r'"a"', ranking_phrases(parse("a"))[0].match)
