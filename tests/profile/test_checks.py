from dataclasses import replace

import numpy as np
import pytest

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.profile import SafetyProfile
from larf_curate.profile.checks import check_sides_differ, check_states_differ, warn_if_not_refusals
from tests.fixtures.models import NEUTRAL, PROFILE

pytestmark = pytest.mark.usefixtures("own_caches")


def references(count=12, source="mine"):
    rows = ReferenceSet.load("builtin")
    return ReferenceSet(unsafe=rows.unsafe[:count], safe=rows.safe[:count], labels=rows.labels[:count], source=source)


def test_references_among_the_neutral_rows_are_refused_by_name(tiny_llama):
    refs = references(4)
    for row, name in ((refs.unsafe[2], "unsafe reference 2"), (refs.safe[1], "safe reference 1")):
        with pytest.raises(ReferenceSetError, match=f"neutral row 10 is {name} of mine too"):
            SafetyProfile.build(tiny_llama, refs, layers=[1], **PROFILE | {"neutral": [*NEUTRAL, row]})


def test_two_sides_with_mostly_the_same_answers_are_refused(tiny_llama):
    refs = references(4)
    mostly = (*refs.unsafe[:3], refs.safe[3])
    with pytest.raises(ReferenceSetError, match="3 of 4 unsafe ones among the safe ones"):
        SafetyProfile.build(tiny_llama, replace(refs, safe=mostly), layers=[1], **PROFILE)


@pytest.mark.parametrize("mark", ["!", " indeed"])
def test_two_sides_a_few_characters_apart_are_refused(tiny_llama, mark):
    refs = references(4)
    copies = tuple(row | {"response": row["response"] * 9 + mark} for row in refs.unsafe[:3])
    longer = tuple(row | {"response": row["response"] * 9} for row in refs.unsafe)
    near = replace(refs, unsafe=longer, safe=(*copies, refs.safe[3]))
    for safe in (near.safe, near.safe[::-1]):  # in whatever order
        with pytest.raises(ReferenceSetError, match="3 of 4 unsafe ones of mine .* share over 90%"):
            SafetyProfile.build(tiny_llama, replace(near, safe=safe), layers=[1], **PROFILE)
    SafetyProfile.build(tiny_llama, replace(near, safe=(*copies[:2], *refs.safe[2:])), layers=[1], **PROFILE)


def test_answers_that_are_alike_to_other_prompts_or_in_their_last_turn_alone_are_no_copies(tiny_llama):
    def talk(prompt, answer):
        turns = [("user", prompt), ("assistant", answer), ("user", "Thanks, that was all."), ("assistant", "Welcome!")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    refs = references(4)
    asked = [f"How do I do the thing number {i}?" for i in range(5)]
    unsafe = tuple(talk(prompt, f"Sure, this is step {i} of it.") for i, prompt in enumerate(asked[:4]))
    safe = tuple(talk(prompt, "No, I will not help anybody with that.") for prompt in asked)
    check_sides_differ(replace(refs, unsafe=unsafe, safe=safe))
    yes = tuple({"prompt": prompt, "response": "Yes, of course."} for prompt in asked)
    other_prompts = tuple(row | {"prompt": f"{i}?"} for i, row in enumerate(yes))
    check_sides_differ(replace(refs, unsafe=yes[:4], safe=other_prompts))


def test_two_sides_with_the_same_states_are_refused():
    alike = {"last": np.random.default_rng(0).normal(size=(4, 2, 8)).astype(np.float32)}
    with pytest.raises(ReferenceSetError, match="same states"):
        check_states_differ({"unsafe": alike, "safe": alike})


def test_a_near_copy_of_a_reference_among_the_neutral_rows_is_refused(tiny_llama):
    refs = references(4)
    copy = {key: f" {value.upper()} " if isinstance(value, str) else value for key, value in refs.unsafe[0].items()}
    with pytest.raises(ReferenceSetError, match="neutral row 10 is unsafe reference 0"):
        SafetyProfile.build(tiny_llama, refs, layers=[1], **PROFILE | {"neutral": [*NEUTRAL, copy]})


def test_neutral_rows_that_are_all_alike_are_refused(tiny_llama):
    with pytest.raises(ReferenceSetError, match="10 different neutral rows, got 1"):
        SafetyProfile.build(tiny_llama, references(4), layers=[1], **PROFILE | {"neutral": NEUTRAL[:1] * 20})


def test_copies_of_a_reference_count_once(tiny_llama, caplog):
    refs = references(12)
    SafetyProfile.build(tiny_llama, replace(refs, unsafe=refs.unsafe[:1] * 12), layers=[1], **PROFILE)
    assert "only 1 distinct references on one side" in caplog.text


@pytest.mark.parametrize(
    ("unsafe", "safe", "told", "untold"),
    [
        ("Here is how.", "I cannot help with that.", [], ["compliance", "exchanged"]),
        (
            "I cannot help with that.",
            "Here is how.",
            ["compliance is off", "2 of 2 unsafe references are refusals"],
            [],
        ),
        ("Hier ist es.", "Dabei helfe ich nicht.", ["known in English only", "compliance is off"], ["exchanged"]),
    ],
)
def test_sides_that_are_exchanged_or_not_in_english_are_told(caplog, unsafe, safe, told, untold):
    sides = [tuple({"prompt": str(i), "response": text} for i in range(2)) for text in (unsafe, safe)]
    warn_if_not_refusals(ReferenceSet(unsafe=sides[0], safe=sides[1], labels=("a", "b"), source="test"))
    assert all(text in caplog.text for text in told)
    assert not any(text in caplog.text for text in untold)
