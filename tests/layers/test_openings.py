import math

import pytest
import torch

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ModelError
from larf_curate.layers.decoding import DecodedAnswer
from larf_curate.layers.openings import Openings, find_openings
from tests.fixtures.tiny import tiny_subject

SORRY, CANNOT, SURE, HERE, EYE, AM, CAN, NO, YES = range(20, 29)


def test_tokens_that_begin_only_one_kind_of_answer_stand_for_it():
    found = Openings.from_answers([[SORRY, NO], [SORRY], [CANNOT], [CANNOT]], [[SURE], [SURE], [HERE], [HERE]])
    assert (found.refusal, found.compliance, found.shared) == ((SORRY, CANNOT), (SURE, HERE), None)
    assert found.extend([[1, 2]]) == [[1, 2]]


def test_a_token_that_begins_both_is_told_apart_by_the_next():
    refusals = [[EYE, CANNOT], [EYE, CANNOT], [EYE, NO], [NO]]
    found = Openings.from_answers(refusals, [[EYE, CAN], [EYE, CAN], [SURE], [SURE]])
    assert (found.shared, found.shared_refusal, found.shared_compliance) == (EYE, (CANNOT,), (CAN,))
    assert (found.refusal, found.compliance) == ((), (SURE,))
    assert found.extend([[1, 2]]) == [[1, 2, EYE]]


def test_answers_that_begin_alike_are_an_error_with_a_remedy():
    with pytest.raises(ModelError, match="sweep"):
        Openings.from_answers([[EYE, AM], [EYE, AM]], [[EYE, AM], [EYE, AM]])


def test_log_odds_equal_the_ratio_of_probabilities():
    logits = torch.randn(3, 2, 30, generator=torch.Generator().manual_seed(0))
    openings = Openings((SORRY,), (SURE, HERE), EYE, (CANNOT,), (CAN,))
    first, second = torch.softmax(logits, -1).unbind(1)
    refusing = first[:, SORRY] + first[:, EYE] * second[:, CANNOT]
    complying = first[:, SURE] + first[:, HERE] + first[:, EYE] * second[:, CAN]
    torch.testing.assert_close(openings.log_odds(logits), torch.log(refusing / complying))


def test_log_odds_stay_finite_where_probabilities_would_vanish():
    logits = torch.zeros(1, 1, 30)
    logits[0, 0, SURE] = 500
    assert math.isclose(float(Openings((SORRY,), (SURE,)).log_odds(logits)), -500, rel_tol=1e-5)


def test_openings_come_from_the_models_own_answers_and_from_the_references():
    subject = tiny_subject()
    token = subject.tokenizer.convert_tokens_to_ids
    references = ReferenceSet(
        unsafe=tuple({"prompt": "how", "response": "sure , here is"} for _ in range(3)),
        safe=tuple({"prompt": "how", "response": "sorry , no"} for _ in range(3)),
        labels=("unsafe",) * 3,
        source="test",
    )
    own = [DecodedAnswer([token("cannot")], True)] * 2 + [DecodedAnswer([token("yes")], False)] * 2
    found = find_openings(subject, own, references)
    assert set(found.refusal) == {token("sorry"), token("cannot")}
    assert set(found.compliance) == {token("sure"), token("yes")}
