import json

import pytest
from datasets import Dataset

from larf_curate.data import load_rows
from larf_curate.data.prompts import load_prompts, load_table, overrejection_prompts
from larf_curate.errors import InputError
from tests.fixtures.training_rows import scored_rows


def test_the_built_in_prompts_are_the_default():
    assert (
        overrejection_prompts()
        == overrejection_prompts("builtin")
        == [row["prompt"] for row in load_rows("overrejection")]
    )
    assert len(overrejection_prompts()) >= 100


def test_prompts_come_from_a_json_list_a_table_or_texts(tmp_path):
    texts = ["How do I kill a process?", "Who shot the photo?"]
    (tmp_path / "list.json").write_text(json.dumps(texts), encoding="utf-8-sig")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": t}) + "\n" for t in texts), encoding="utf-8")
    (tmp_path / "table.csv").write_text(
        "id,prompt\n1,How do I kill a process?\n2,Who shot the photo?\n", encoding="utf-8"
    )
    for source in (tmp_path / "list.json", str(tmp_path / "rows.jsonl"), tmp_path / "table.csv", texts, tuple(texts)):
        assert overrejection_prompts(source) == texts


def test_lone_surrogates_are_replaced_because_no_tokenizer_takes_them():
    (prompt,) = overrejection_prompts(["kill \ud800 it"])
    assert prompt == "kill \N{REPLACEMENT CHARACTER} it"


def test_an_empty_table_is_refused(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.touch()
    with pytest.raises(InputError, match="no rows"):
        overrejection_prompts(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "no rows"),
        ('["ok", ""]', "prompt 1 .* empty"),
        ("[1]", "list of objects or of texts"),
        ("{", "cannot read p.*json"),
        ("7", "cannot read .*prompts.json: wanted a JSON list of prompts, or rows, got 7"),
        ('"ab"', "cannot read .*prompts.json: wanted a JSON list of prompts, or rows, got 'ab'"),
        ("null", "cannot read .*prompts.json: wanted a JSON list of prompts, or rows, got None"),
        ("[" * 20_000, "prompts.json is not valid JSON .nested too deeply"),
        ('[{"name": "x"}]', "no column of prompts, only name"),
        ('{"prompts": ["x"]}', "no column of prompts, only prompts"),
    ],
)
def test_files_without_usable_prompts_are_refused(tmp_path, content, said):
    path = tmp_path / "prompts.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        overrejection_prompts(path)


def test_a_file_that_is_not_there_and_an_unknown_ending_are_refused(tmp_path):
    (tmp_path / "prompts.txt").write_text("x", encoding="utf-8")
    for name in ("none.jsonl", "none.json", "prompts.txt"):
        with pytest.raises(InputError, match="no files match|wanted files ending in"):
            overrejection_prompts(tmp_path / name)


def test_kept_rows_of_a_selection_are_what_is_trained_on(tmp_path):
    for part, count in (("kept", 3), ("flagged", 2)):
        (tmp_path / part).mkdir()
        scored_rows(count).to_parquet(tmp_path / part / "part-00000.parquet")
    assert len(load_table(tmp_path)) == 3


def test_prompts_are_read_from_every_format(tmp_path):
    rows = Dataset.from_dict({"Goal": ["a, b", "c"], "kind": ["x", "y"]})
    rows.to_csv(tmp_path / "p.csv")
    rows.to_json(tmp_path / "p.jsonl")
    rows.to_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.json").write_text('["a, b", "c"]')
    for name in ("p.csv", "p.jsonl", "p.parquet", "p.json"):
        assert load_prompts(tmp_path / name) == ["a, b", "c"]
    assert load_prompts(tmp_path / "p.csv", column="kind", limit=1) == ["x"]
    assert load_prompts(tmp_path / "p.csv", where="kind=y") == ["c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "goal"}, "no column goal, only Goal, kind"),
        ({"where": "kind=z"}, "no prompts with kind=z"),
        ({"where": "sort=z"}, "no column 'sort'"),
        ({"where": "kind"}, "as column=value, such as label=safe, got 'kind'"),
    ],
)
def test_prompts_that_are_not_there_are_refused(tmp_path, options, message):
    Dataset.from_dict({"Goal": ["a"], "kind": ["x"]}).to_csv(tmp_path / "p.csv")
    with pytest.raises(InputError, match=message):
        load_prompts(tmp_path / "p.csv", **options)


@pytest.mark.parametrize("options", [{"where": "label=safe"}, {"column": "prompt"}])
def test_a_list_without_columns_has_none_to_ask_for(tmp_path, options):
    (tmp_path / "p.json").write_text('["a"]')
    for source in (tmp_path / "p.json", "builtin:safe"):
        with pytest.raises(InputError, match="plain list of prompts"):
            load_prompts(source, **options)


def test_an_empty_prompt_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "p.json").write_text('["a", " "]')
    with pytest.raises(InputError, match="prompt 1 of .* is empty"):
        load_prompts(tmp_path / "p.json")
    with pytest.raises(InputError, match="no files match"):
        load_prompts(tmp_path / "none.csv")


def test_rows_that_were_shuffled_after_reading_are_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{n} apples"}) for n in range(5)), encoding="utf-8")
    shuffled = load_table(path).shuffle(seed=1)  # `datasets` keeps the order in a file of the cache
    assert sorted(load_table(path)["prompt"]) == sorted(shuffled["prompt"])
