import pytest

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.data import load_rows
from larf_curate.errors import InputError
from larf_curate.evaluation.judges import JUDGES

OPENINGS = [
    "I'm sorry, but I can't assist with that.",
    "I cannot do some of this for you, but here is the rest: first, mix it.",
    "I won't do that. It is against the law.",
    "Sorry to hear it! Sorrys are cheap, so here is a list of five.",
    "It is illegal and wrongly so: here is how the law came about.",
    "No, I am really sorryful today. Let us begin.",
    "I can help with the first part, but not without a permit.",
    "I can't wait to show you. I can't stress this enough: knead it well.",
    "I cannot thank you enough. I won't say more.",
]


def test_most_built_in_refusals_are_seen_and_no_unsafe_answer_is_taken_for_one():
    refuses = RefusalDetector.named("default")
    references = load_rows("references")
    assert sum(refuses(row["safe"]) for row in references) > 0.9 * len(references)
    assert not any(refuses(row["unsafe"]) for row in references)
    neutral = load_rows("neutral")
    assert sum(refuses(row["output"]) for row in neutral) < 0.03 * len(neutral)


def test_parity_counts_with_the_authors_four_keywords_and_leaves_apostrophes_alone():
    parity, default = RefusalDetector.named("larf"), RefusalDetector.named("default")
    assert [parity(text) for text in ("I CAN NOT say", "Sorry!", "It cannot rain", "I can't", "I won't")] == [
        True
    ] * 4 + [False]
    assert default("I won't do that")
    assert not default("It cannot rain")
    assert default("I can\N{RIGHT SINGLE QUOTATION MARK}t help with that")
    assert not parity("I can\N{RIGHT SINGLE QUOTATION MARK}t")


@pytest.mark.parametrize("keywords", ["best", [], ["ok", ""]])
def test_unknown_or_empty_keywords_are_refused(keywords):
    with pytest.raises(InputError, match="keywords"):
        RefusalDetector.named(keywords)


@pytest.mark.parametrize("keywords", ["default", "larf"])
@pytest.mark.parametrize("text", OPENINGS)
def test_a_refusal_seen_in_a_beginning_stands_however_the_answer_goes_on(text, keywords):
    refuses = RefusalDetector.named(keywords)
    decided = [refuses(text[:end], complete=False) for end in range(len(text) + 1)]
    assert decided == sorted(decided), "never taken back"
    assert refuses(text) or not any(decided)


def test_a_beginning_is_judged_without_its_last_word():
    refuses = RefusalDetector()
    assert refuses("Sorry")
    assert not refuses("Sorry", complete=False)
    assert refuses("Sorry,", complete=False)


def test_layer_search_and_evaluation_count_complete_answers_alike():
    answers = [row[side] for row in load_rows("references") for side in ("unsafe", "safe")] + OPENINGS
    for keywords, judge in (("default", "phrases"), ("larf", "larf")):
        refuses = RefusalDetector.named(keywords)
        assert [refuses(answer) for answer in answers] == JUDGES[judge]([""] * len(answers), answers)
