import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose

from larf_curate.cli import main
from larf_curate.conversation.chat_template import Renderer
from larf_curate.errors import ProfileMismatchError
from larf_curate.profile import SafetyProfile
from larf_curate.review.records.evidence import evidence
from larf_curate.scoring.explanation import explain, explain_flagged
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import Selection
from larf_curate.signals import SIGNALS
from tests.fixtures.models import PROFILE, six_pairs
from tests.models.test_hidden_states import full_states

pytestmark = pytest.mark.usefixtures("own_caches")
ROW = {"prompt": "How do I bake café bread?", "response": "Sure, here is a recipe: flour \N{SNOWMAN} and water."}
TURNS = (("user", "Hi?"), ("assistant", "Sure, a recipe."), ("user", "And?"), ("assistant", "No."))
CHAT = [{"role": role, "content": content} for role, content in TURNS]
ROWS = [ROW, {"messages": CHAT}, {"text": "Some plain text, sorry."}]


@pytest.fixture(scope="module")
def profile(tiny_llama):
    six = six_pairs()
    return SafetyProfile.build(tiny_llama, six, layers=[1, 3], **PROFILE | {"signal": "combined"})


def test_start_and_weights_add_up_to_the_score_of_the_scorer(profile):
    scores = [item.score for item in LarfScorer(profile, device="cpu").score(ROWS)]
    for found, score in zip(explain(profile, ROWS, device="cpu"), scores, strict=True):
        assert found.score == pytest.approx(score, abs=1e-3)
        assert found.start + sum(token.weight for token in found.tokens) == pytest.approx(found.score, abs=1e-4)


@pytest.mark.parametrize("name", ["combined", "projection", "larf"])
def test_the_running_score_of_a_token_is_that_of_the_row_cut_off_behind_it(profile, tiny_llama, name):
    (found,) = explain(replace(profile, signal=name), [ROW], device="cpu")
    (item,) = Renderer(profile.reader(device="cpu").tokenizer, 4096)([ROW])
    ids, start = item.tokens.ids, item.tokens.turns[0].start
    running = found.start + np.cumsum([token.weight for token in found.tokens])
    states = full_states(tiny_llama, ids)[[1, 3]]
    for place in (start, start + 1, start + 9, len(ids) - 1):
        row = {
            "last": states[None, :, place],
            "prompt": states[None, :, start - 1],
            "mean": states[None, :, start : place + 1].mean(axis=2),
            "length": np.full((1, 2, 1), place + 1, np.float32),
        }
        want = SIGNALS[name].fit(profile.references_for(name))(row).mean()
        assert_allclose(running[place - len(ids)], want, atol=2e-3)


def test_the_texts_of_the_tokens_are_the_rows_own_without_the_heading(profile):
    first, chat, text = explain(profile, ROWS, device="cpu")
    said = "".join(token.text for token in first.tokens)
    assert said.startswith(ROW["prompt"])
    assert ROW["response"] in said
    assert "\N{REPLACEMENT CHARACTER}" not in said
    assert "".join(token.text for token in text.tokens) == "Some plain text, sorry."
    assert "".join(token.text for token in chat.tokens).startswith("Hi?")


def test_a_row_without_a_score_has_no_explanation(profile):
    assert explain(profile, [{"prompt": "P", "response": ""}, ROW], device="cpu")[0] is None


def test_the_command_shows_the_strongest_tokens(profile, tmp_path):
    profile.save_pretrained(tmp_path / "profile")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(ROW) + "\n" + json.dumps(ROW | {"response": "No\u001b[31m."}) + "\n"
    )

    def run(*options):
        command = ["explain", tmp_path / "rows.jsonl", "--profile", tmp_path / "profile", "--device", "cpu", *options]
        return CliRunner().invoke(main, [str(part) for part in command])

    shown = run("--row", 1, "--row", 0)
    assert shown.exit_code == 0, shown.output
    assert "Row 1: score" in shown.stdout
    assert "\u001b[31m" not in shown.stdout
    (told,) = json.loads(run("--row", 0, "--json").stdout)["rows"]
    count = len(told["tokens"])
    text = run("--row", 0).stdout
    assert (
        f"score {told['score']:.3f} = {told['start']:+.3f} (text before the row, such as the system prompt) +" in text
    )
    assert (f"15 largest of {count} contributions" if count > 15 else f"All {count} contributions") in text
    assert told["start"] + sum(token["weight"] for token in told["tokens"]) == pytest.approx(told["score"], abs=1e-4)
    assert run("--row", 2).exit_code == 2
    (tmp_path / "rows.jsonl").write_text(json.dumps({"x": "y"}) + "\n")
    assert "Row 0 has no score: " in run("--row", 0).stdout
    assert "x" in run("--row", 0).stdout


def test_text_without_a_prompt_counts_as_one_with_an_ordinary_prompt(profile):
    scorer = LarfScorer(profile, signals=["erosion", "combined"], device="cpu")
    texts = [{"text": "Some plain text, sorry."}, {"text": "Other words altogether, by far."}]
    reader = profile.reader(device="cpu")
    tokens = [item.tokens for item in Renderer(reader.tokenizer, 4096)(texts)]
    assert [item.turns[0].start for item in tokens] == [0, 0]
    states = reader(tokens, ("last", "prompt", "mean", "length"))
    states["prompt"][:] = profile.states["neutral"]["prompt"].mean(axis=0)
    for found, want in zip(scorer.score(texts), SIGNALS["erosion"].fit(profile.references_for())(states), strict=True):
        assert found.signals["erosion"] == pytest.approx(want.mean(), abs=1e-3)
        assert found.status == "ok"


def test_a_selection_takes_the_tokens_of_its_worst_rows_along(profile, tmp_path):
    profile.save_pretrained(tmp_path / "profile")
    rows = [ROW | {"response": f"Sure, {number} cups of flour."} for number in range(6)] + [
        {"prompt": "?", "response": ""}
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*command):
        return CliRunner().invoke(main, [str(part) for part in command])

    done = run(
        "score", tmp_path / "rows.jsonl", "--profile", tmp_path / "profile", "-o", tmp_path / "out", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    select = ["select", tmp_path / "out", "--top-k", 3, "-o", tmp_path / "sel", "--tokens", 2, "--device", "cpu"]
    assert run(*select).exit_code == 2
    done = run(*select, "--profile", tmp_path / "profile")
    assert done.exit_code == 0, done.output
    selection = Selection.load(tmp_path / "sel")
    first, second, *others = selection.flagged["larf_tokens"]
    assert others == [None, None]
    own = {name: selection.flagged[0][name] for name in ("prompt", "response")}
    (want,) = explain(profile, [own], device="cpu")
    assert [token["text"] for token in first] == [token.text for token in want.tokens]
    assert_allclose([token["weight"] for token in first], [token.weight for token in want.tokens], atol=1e-3)
    assert "Tokens: orange raises the score" in evidence(selection.flagged[1])
    assert second
    assert "larf_tokens" not in selection.kept.column_names
    with pytest.raises(ProfileMismatchError, match="another profile"):
        explain_flagged(selection, replace(profile, signal="larf"), rows=1)
