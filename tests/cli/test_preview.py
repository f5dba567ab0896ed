import json
import re

import pytest

from larf_curate.cli.token_view import escaped, legend, token_text
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.preview import TokenView
from larf_curate.scoring.selection import Selection
from tests.cli.test_cli import error, run
from tests.fixtures.models import PROFILE
from tests.fixtures.review_rows import HOSTILE, scored
from tests.fixtures.scored_folder import write_scored

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def rows(tmp_path):
    hostile = [
        {"question": text, "answer": f"{text} ⟦fake⟧ [bold]x[/bold] \x1b[2J\x9b\u2066"} for text in HOSTILE.values()
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*hostile, {"question": "\x1b[2Jq", "answer": ""}]))
    return path


def test_escapes_show_what_a_terminal_would_obey_and_keep_the_rest():
    assert escaped("a\x1b[2J\u202e\u200b\x85\ud800\U000e0041\t\xa0é日\n").plain == (
        r"a\x1b[2J\u202e\u200b\x85\ud800\U000e0041\t\xa0é日↵" + "\n"
    )
    assert escaped("⟦│⟧↵").plain == r"\u27e6\u2502\u27e7\u21b5"
    assert escaped("[bold]x[/bold]").plain == "[bold]x[/bold]"


def test_marks_alone_show_what_is_learned_and_read():
    views = [("a", "prompt", True), ("\n", "prompt", True), ("b", "learned", True), ("c\n", "learned", True)]
    views += [("d", "not learned", True), ("e", "prompt", False), ("", "prompt", False)]
    tokens = [TokenView(text=text, part=part, read=read) for text, part, read in views]
    assert token_text(tokens).plain == "a│↵\n⟦b│c↵⟧\n⟨d⟩⟪e│⟫"
    assert [mark in legend(tokens).plain for mark in "⟦⟨⟪"] == [True] * 3
    assert [mark in legend(tokens[:2]).plain for mark in "⟦⟨⟪"] == [False] * 3
    assert "2 tokens not shown" not in token_text(tokens * 400).plain
    assert "500 tokens not shown" in token_text(tokens * 500).plain


@pytest.mark.parametrize("index", range(len(HOSTILE) + 1))
def test_hostile_rows_print_no_control_character(rows, tiny_llama, index):
    shown = run("preview", rows, "--model", tiny_llama, "--row", index).stdout
    assert all(character.isprintable() or character == "\n" for character in shown), re.findall(r"[^\x20-\x7e]", shown)
    assert "First 9 rows" in shown
    assert ("wanted an assistant turn with text" in shown.splitlines()[1]) == (index == len(HOSTILE))
    assert (r"\u27e6" in shown) == (index < len(HOSTILE))


def test_json_has_ids_spans_and_counts_and_a_profile_gives_the_same(rows, tiny_llama, tmp_path):
    SafetyProfile.build(tiny_llama, layers=[1], **PROFILE).save_pretrained(tmp_path / "profile")
    by_model, by_profile = (
        json.loads(run("preview", rows, *option, "--row", 2, "--json").stdout)
        for option in (("--model", tiny_llama), ("--profile", tmp_path / "profile"))
    )
    assert by_model == by_profile
    assert by_model["status"] == "ok"
    assert len(by_model["ids"]) == len(by_model["learned"]) == len(by_model["offsets"])
    [empty] = [count for count in by_model["counts"]["statuses"] if count["status"] == "empty"]
    assert (empty["rows"], empty["first_row"]) == (1, 8)
    run("score", rows, "--profile", tmp_path / "profile", "-o", tmp_path / "scored", "--json")
    run("select", tmp_path / "scored", "--top-k", 2, "-o", tmp_path / "sel", "--json")
    shown = json.loads(run("preview", tmp_path / "scored", "--row", 2, "--json").stdout)
    assert shown["ids"] == by_model["ids"], "the profile that scored the folder is found"
    page = tmp_path / "page.html"
    run("report", tmp_path / "sel", "-o", page)
    commands = re.findall(r"larf-curate preview sel --row (\w+)", page.read_text(encoding="utf-8"))
    assert len(set(commands)) == 9
    texts = {
        json.loads(run("preview", tmp_path / "sel", "--row", row, "--json").stdout)["text"] for row in commands[:2]
    }
    assert len(texts) == 2
    [first] = json.loads(run("explain", tmp_path / "sel", "--row", commands[0], "--json", "--device", "cpu").stdout)[
        "rows"
    ]
    selection = Selection.load(tmp_path / "sel")
    data = [*selection.flagged, *selection.kept]
    index = [row["larf_row_id"] for row in data].index(commands[0])
    assert first["row"] == index
    assert first["score"] == pytest.approx(data[index]["larf_score"], abs=1e-3)


def test_explain_says_why_a_row_has_no_score_and_finds_the_columns_of_a_scored_folder(tiny_llama, tmp_path):
    profile = SafetyProfile.build(tiny_llama, layers=[1], **PROFILE)
    profile.save_pretrained(tmp_path / "profile")
    data = scored([{"q": "Q?", "a": "A."}, {"q": "Q?", "a": ""}])
    source = {"columns": {"user": "q", "assistant": "a"}}
    folder = write_scored(tmp_path / "scored", data, source=source, profile=profile.summary())
    options = ("--profile", tmp_path / "profile", "--device", "cpu")
    shown = run("explain", folder, *options, "--row", 0, "--row", 1).stdout
    assert "Row 0: score" in shown
    assert "Row 1 has no score: wanted an assistant turn with text" in shown


def test_wrong_use_is_one_line(rows, tiny_llama, tmp_path):
    assert "--profile PROFILE, or --model MODEL" in error("preview", rows)
    assert "below 9" in error("preview", rows, "--model", tiny_llama, "--row", 9)
    assert "--chat-template" in error("preview", rows, "--chat-template", rows)
    assert "wanted the index" in error("preview", rows, "--model", tiny_llama, "--row", "x")


def test_either_side_of_preference_data_is_shown(tmp_path, tiny_llama):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "How?", "chosen": "With flour.", "rejected": "No idea."}) + "\n")
    for side, answer in (("chosen", "With flour."), ("rejected", "No idea.")):
        shown = json.loads(run("preview", path, "--model", tiny_llama, "--side", side, "--json").stdout)
        [turn] = shown["turns"]
        assert shown["text"][slice(*turn["characters"])].startswith(answer)
    assert "cannot be combined" in error(
        "preview", path, "--model", tiny_llama, "--side", "chosen", "--columns", "user=prompt,assistant=chosen", code=2
    )


def test_what_the_renderer_warns_of_is_printed_and_in_the_json(tmp_path, tiny_llama):
    chat = [{"role": "human", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0}]
    chat += [{"role": "human", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    command = ["preview", str(path), "--model", str(tiny_llama)]
    warnings = json.loads(run(*command, "--json").output)["warnings"]
    assert all(text in " ".join(warnings) for text in ("roles human are read as user", "weight, train or loss 0"))
    printed = run(*command).output
    assert all(f"Warning: {warning}" in printed for warning in warnings)
    assert len(warnings) == 2
