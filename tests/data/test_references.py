import json
import shutil

import pytest
from datasets import Dataset
from huggingface_hub import HfApi

from larf_curate.conversation.schemas import to_messages
from larf_curate.data.references import MIN_NEUTRAL, ReferenceSet, load_neutral
from larf_curate.errors import ReferenceSetError

PAIRS = [
    {"prompt": "P0", "unsafe": "U0", "safe": "S0", "category": "weapons"},
    {"prompt": "P1", "unsafe": "U1", "safe": "S1", "category": None},
]
PKU = [
    {"prompt": "P0", "response_0": "U0", "response_1": "S0", "is_response_0_safe": False, "is_response_1_safe": True},
    {"prompt": "P1", "response_0": "S1", "response_1": "U1", "is_response_0_safe": True, "is_response_1_safe": False},
    {"prompt": "P2", "response_0": "S2", "response_1": "S3", "is_response_0_safe": True, "is_response_1_safe": True},
    {"prompt": "P3", "response_0": "U3", "response_1": "U4", "is_response_0_safe": False, "is_response_1_safe": False},
]
pytestmark = pytest.mark.usefixtures("own_caches")


def write(path, rows):
    dataset = Dataset.from_list(rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        dataset.to_csv(path, index=False)
    else:
        dataset.to_parquet(path)
    return path


def texts(references):
    return [
        [tuple(message["content"] for message in to_messages(row)) for row in side]
        for side in (references.unsafe, references.safe)
    ]


WANT = [[("P0", "U0"), ("P1", "U1")], [("P0", "S0"), ("P1", "S1")]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_pairs_are_read_from_every_kind_of_file(tmp_path, suffix):
    references = ReferenceSet.load(write(tmp_path / f"pairs{suffix}", PAIRS))
    assert texts(references) == WANT
    assert references.labels == ("weapons", "unsafe")
    assert references.same_size
    assert len(references) == 2


def test_a_folder_is_read_in_name_order_whatever_its_files_have_beside_the_pairs(tmp_path):
    write(tmp_path / "b.jsonl", [PAIRS[1] | {"extra": 5}])
    write(tmp_path / "a.parquet", [{key: PAIRS[0][key] for key in ("prompt", "unsafe", "safe")}])
    write(tmp_path / "c.json", PKU[:1])
    (tmp_path / "README.md").write_text("not data")
    references = ReferenceSet.load(tmp_path)
    assert texts(references)[0] == [("P0", "U0"), ("P1", "U1"), ("P0", "U0")]
    assert texts(references)[1] == [("P0", "S0"), ("P1", "S1"), ("P0", "S0")]


@pytest.mark.parametrize("name", ["refs [v2].jsonl", "refs *?{a,b}.csv", "[refs].json"])
def test_names_may_have_glob_characters(tmp_path, name):
    assert texts(ReferenceSet.load(write(tmp_path / name, PAIRS))) == WANT
    neutral = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(MIN_NEUTRAL)]
    assert load_neutral(write(tmp_path / f"neutral {name}", neutral)) == tuple(neutral)


def test_a_name_with_glob_characters_is_not_that_of_another_file(tmp_path):
    write(tmp_path / "refs1.jsonl", [PAIRS[0] | {"unsafe": "other"}])
    with pytest.raises(ReferenceSetError, match="there is no file"):
        ReferenceSet.load(tmp_path / "refs[1].jsonl")
    assert texts(ReferenceSet.load(write(tmp_path / "refs[1].jsonl", PAIRS))) == WANT
    assert texts(ReferenceSet.load(write(tmp_path / "a::b#%41?.jsonl", PAIRS))) == WANT


def test_hidden_files_and_other_splits_of_a_folder_are_no_references(tmp_path):
    for name in (".ipynb_checkpoints", "train", "test"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "pairs.jsonl", PAIRS if name == "train" else [PAIRS[0] | {"unsafe": "other"}])
    assert texts(ReferenceSet.load(tmp_path)) == WANT
    assert texts(ReferenceSet.load(tmp_path, split="test"))[0] == [("P0", "other")]
    with pytest.raises(ReferenceSetError, match="has the splits train, test"):
        ReferenceSet.load(tmp_path, split="dev")
    shutil.rmtree(tmp_path / "train")
    assert texts(ReferenceSet.load(tmp_path))[0] == [("P0", "other")]


def test_words_of_csv_files_that_look_like_missing_values_are_text(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,unsafe,safe\nP0,None,NA\nP1,null,nan\n")
    assert texts(ReferenceSet.load(tmp_path / "pairs.csv")) == [
        [("P0", "None"), ("P1", "null")],
        [("P0", "NA"), ("P1", "nan")],
    ]


def test_columns_of_other_names_are_mapped(tmp_path):
    rows = [{"q": r["prompt"], "bad": r["unsafe"], "good": r["safe"], "kind": r["category"]} for r in PAIRS]
    columns = {"prompt": "q", "unsafe": "bad", "safe": "good", "category": "kind"}
    references = ReferenceSet.load(write(tmp_path / "x.jsonl", rows), columns=columns)
    assert texts(references) == WANT
    assert references.labels == ("weapons", "unsafe")


def test_rows_with_two_judged_answers_give_a_pair_where_one_is_safe(tmp_path):
    references = ReferenceSet.load(write(tmp_path / "pku.jsonl", PKU))
    assert texts(references) == WANT


def test_judged_answers_may_be_mapped_by_hand(tmp_path):
    columns = {"unsafe": "response_0", "safe": "response_1"}
    references = ReferenceSet.load(write(tmp_path / "pku.jsonl", PKU[:1]), columns=columns)
    assert texts(references) == [[("P0", "U0")], [("P0", "S0")]]


def test_whole_conversations_are_read_one_file_a_side(tmp_path):
    unsafe = write(tmp_path / "u.jsonl", [{"messages": chat("P0", "U0"), "category": "x"}])
    safe = write(tmp_path / "s.json", [{"instruction": "P0", "input": "", "output": "S0"}, {"text": "whole"}][:1] * 2)
    references = ReferenceSet.from_sides(unsafe, safe)
    assert texts(references) == [[("P0", "U0")], [("P0", "S0"), ("P0", "S0")]]
    assert references.labels == ("x",)
    assert not references.same_size
    assert references.source == "u.jsonl + s.json"


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_prompts_may_be_chats(tmp_path):
    rows = [{"prompt": chat("a", "b") + chat("P0", "-")[:1], "unsafe": "U0", "safe": chat("", "S0")[1:]}]
    references = ReferenceSet.load(write(tmp_path / "x.jsonl", rows))
    assert texts(references) == [[("a", "b", "P0", "U0")], [("a", "b", "P0", "S0")]]


def test_the_builtin_set_is_paired_and_labelled():
    references = ReferenceSet.load()
    assert len(references) >= 120
    assert len(set(references.labels)) >= 12
    assert references.same_size
    assert [to_messages(row)[0] for row in references.unsafe] == [to_messages(row)[0] for row in references.safe]


def test_the_digest_follows_the_texts_alone(tmp_path):
    one = ReferenceSet.load(write(tmp_path / "one.jsonl", PAIRS))
    same = ReferenceSet.load(write(tmp_path / "same.csv", PAIRS))
    swapped = ReferenceSet.load(tmp_path / "one.jsonl", columns={"unsafe": "safe", "safe": "unsafe"})
    assert one.digest == same.digest
    assert swapped.digest != one.digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIRS[0], {"prompt": "P", "unsafe": "U"}], r"row 1 of .* has no safe"),
        ([{"question": "P", "unsafe": "U", "safe": "S"}], "has no prompt.*columns="),
        ([PAIRS[0] | {"unsafe": None}], "row 0 .* has no unsafe"),
        ([PAIRS[0] | {"safe": " "}], "safe reference 0 .* not a conversation"),
        ([PAIRS[0] | {"unsafe": {"text": "5"}}], "unsafe reference 0 .* not a conversation"),
        (PKU[2:], "no unsafe ones"),
    ],
)
def test_sets_that_lack_something_are_refused_with_the_row(tmp_path, rows, message):
    with pytest.raises(ReferenceSetError, match=message) as error:
        ReferenceSet.load(write(tmp_path / "x.jsonl", rows))
    assert "\n" not in str(error.value)


def test_a_one_sided_set_is_refused():
    row = {"prompt": "P", "response": "U"}
    with pytest.raises(ReferenceSetError, match="no safe ones"):
        ReferenceSet(unsafe=(row,), safe=(), labels=("x",), source="mine")
    with pytest.raises(ReferenceSetError, match="no unsafe ones"):
        ReferenceSet(unsafe=(), safe=(row,), labels=(), source="mine")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", ""),
        ("x.jsonl", "{not json\n"),
        ("x.json", "[]"),
        ("x.csv", ""),
        ("x.parquet", "not parquet"),
        ("x.txt", "a"),
        ("x.jsonl", '{"prompt": "caf\udce9", "unsafe": "a", "safe": "b"}\n'),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ReferenceSetError) as error:
        ReferenceSet.load(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    assert "generating the dataset" not in str(error.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ReferenceSetError, match="no files ending in"):
        ReferenceSet.load(tmp_path)


def test_pairs_are_read_from_the_hub_and_a_missing_set_is_refused(tmp_path, hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/pairs", repo_type="dataset", private=False)
    path = write(tmp_path / "train.parquet", PAIRS)
    api.upload_file(path_or_fileobj=path, path_in_repo="data/train.parquet", repo_id="org/pairs", repo_type="dataset")
    references = ReferenceSet.load("org/pairs")
    assert texts(references) == WANT
    assert references.source == "org/pairs"
    with pytest.raises(ReferenceSetError, match="org/nothing"):
        ReferenceSet.load("org/nothing")


def test_a_broken_file_is_one_error_and_logs_nothing_and_endings_may_be_capital(tmp_path, caplog, capfd):
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "unsafe"')
    with pytest.raises(ReferenceSetError, match="cannot read broken.jsonl as json"):
        ReferenceSet.load(tmp_path / "broken.jsonl")
    assert not caplog.text
    assert "Failed to" not in capfd.readouterr().err
    (tmp_path / "GOOD.JSONL").write_text('{"prompt": "a", "unsafe": "b", "safe": "c"}\n')
    assert len(ReferenceSet.load(tmp_path / "GOOD.JSONL")) == 1
