"""Review by files: what leaves comes back, decisions are those of a queue, and nothing is lost without being told."""

import csv
import io
import json
import random
import shutil
import subprocess
import zipfile
from dataclasses import replace
from datetime import UTC, datetime

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from larf_curate.cli import main
from larf_curate.columns import ROW_ID, content_digest
from larf_curate.errors import InputError
from larf_curate.publish.kept_rows import read_kept_rows
from larf_curate.review import Decisions, export_review, import_decisions
from larf_curate.review.decisions.merge import MergeRule, merge_records
from larf_curate.review.decisions.responses import Judgement, ReviewedRecord
from larf_curate.review.files.cells import escape, escape_id, from_ooxml, to_ooxml, unescape, unescape_id
from larf_curate.review.files.label_studio import CONFIG
from larf_curate.review.files.line import COLUMNS, DIGEST, ROW
from tests.fixtures.long import at_length
from tests.fixtures.review_rows import questions, selection

ENDINGS = (".csv", ".jsonl", ".parquet", ".xlsx")
NAMES = ("keep", "remove", "edit", "unsure")


def chosen(n=8, flagged=6):
    return selection(questions(n), flagged=flagged)


def ids(selected):
    return selected.flagged[ROW_ID][:]


def read_cells(path):
    """The cells of an exported table, read without this package."""
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    rows = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
    header = next(rows)
    return [dict(zip(header, row, strict=True)) for row in rows]


def write_cells(path, rows, columns=COLUMNS, **options):
    """Write a table as people's programs do."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
            writer = csv.DictWriter(file, columns, **options)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        book = openpyxl.Workbook()
        book.active.append(list(columns))
        for row in rows:
            book.active.append([row.get(name) for name in columns])
        book.save(path)
    return path


def fill_in(path, answers):
    """Fill in the columns of rows of an exported table; ``answers`` are by row id."""
    if path.suffix == ".xlsx":
        book = openpyxl.load_workbook(path)
        sheet = book.active
        header = [cell.value.removeprefix("\u00ef\u00bb\u00bf") for cell in sheet[1]]
        for row in sheet.iter_rows(min_row=2):
            for name, value in answers.get(unescape_id(row[header.index(ROW)].value), {}).items():
                cell = row[header.index(name)]
                cell.value, cell.data_type = value, "s"
        book.save(path)
        return path
    return write_cells(path, [row | answers.get(unescape_id(row[ROW]), {}) for row in read_cells(path)])


def decided(selected, path, answers, **options):
    export_review(selected, path)
    return import_decisions(fill_in(path, answers), selected, **options).apply(selected)


def answers_for(selected):
    first, second, third, fourth, *_ = ids(selected)
    return {
        first: {"decision": "keep", "comment": "fine", "annotator": "maria"},
        second: {"decision": "remove", "annotator": "maria"},
        third: {"decision": "edit", "corrected_answer": "=1+1 is\n'two'", "annotator": "maria"},
        fourth: {"decision": "unsure", "annotator": "maria"},
    }


def from_a_queue(selected, answers):
    """The outcome of the same decisions through records as a server returns them."""
    digests = {row[ROW_ID]: content_digest(row) for row in selected.flagged}
    records = []
    for row_id in ids(selected):
        given_answer = answers.get(row_id)
        judgement = given_answer and Judgement(
            annotator=given_answer["annotator"],
            status="submitted",
            decision=given_answer["decision"],
            category=None,
            severity=None,
            rationale=given_answer.get("comment"),
            corrected_answer=given_answer.get("corrected_answer"),
            time=datetime(2026, 1, 1, tzinfo=UTC),
            outdated=False,
        )
        judgements = (judgement,) if judgement else ()
        records.append(
            ReviewedRecord(row_id=row_id, content_digest=digests[row_id], done=bool(judgements), judgements=judgements)
        )
    return Decisions(merge_records(records, MergeRule.parse("majority")), "majority").apply(selected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_that_was_filled_in_gives_the_folder_that_pull_gives(tmp_path, ending):
    selected = chosen()
    answers = answers_for(selected)
    outcome = decided(selected, tmp_path / f"table{ending}", answers)
    want = from_a_queue(selected, answers)
    assert outcome.decisions == want.decisions
    outcome.save(tmp_path / "got")
    want.save(tmp_path / "want")
    got, want = (json.loads((tmp_path / name / "decisions.json").read_text()) for name in ("got", "want"))
    assert got == want
    assert (got["counts"]["edited"], got["counts"]["removed"], got["counts"]["withheld"]) == (1, 1, 3)
    kept = read_kept_rows(tmp_path / "got")
    assert (kept.counts["reviewed"], kept.counts["published"], kept.reviewers) == (3, 4, 1)
    assert "=1+1 is\n'two'" in outcome.kept["answer"][:]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_exported_are_all_flagged_rows_with_empty_decisions(tmp_path, ending):
    selected = chosen()
    result = export_review(selected, tmp_path / f"table{ending}")
    rows = read_cells(result.path)
    assert [row[ROW] for row in rows] == ids(selected)
    assert [row[DIGEST] for row in rows] == [content_digest(row) for row in selected.flagged]
    assert result.rows == len(rows) == 6
    assert {row[name] or "" for row in rows for name in ("decision", "corrected_answer", "comment", "annotator")} == {
        ""
    }
    assert rows[0]["text"] == "user: What is 0 plus one?\n\nassistant: It is 1."
    assert rows[0]["answer"] == "It is 1."
    assert "score" in rows[0]["evidence"]


@pytest.mark.parametrize("ending", [*ENDINGS, ".json"])
def test_a_selection_without_flagged_rows_gives_a_table_without_rows(tmp_path, ending):
    selected = chosen(5, 0)
    assert export_review(selected, tmp_path / f"table{ending}").rows == 0
    assert import_decisions(tmp_path / f"table{ending}", selected).apply(selected).counts["kept"] == 5


def test_a_file_that_exists_is_not_replaced_and_other_endings_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("decisions of a week")
    with pytest.raises(InputError, match="may hold decisions"):
        export_review(chosen(), tmp_path / "table.csv")
    (tmp_path / "tasks.xml").write_text("<View/>")
    with pytest.raises(InputError, match="may hold decisions"):
        export_review(chosen(), tmp_path / "tasks.json")
    with pytest.raises(InputError, match=r"wanted a file ending in \.csv"):
        export_review(chosen(), tmp_path / "table.ods")
    assert not (tmp_path / "tasks.json").exists()


ODD = st.text(st.characters(exclude_categories=()) | st.sampled_from("=+-@\t\r\n'[U+09AF]_x0041\0\ud800"))


@given(ODD)
def test_every_text_comes_back_from_its_cell(text):
    for first in (False, True):
        cell = escape(text, first=first)
        assert unescape(cell) == text
        cell.encode()
        assert not first or not cell.lstrip(" \n")[:1] or cell.lstrip(" \n")[0] not in "=+-@\t\r'"
    assert unescape_id(escape_id(text)) == text
    assert not any(c in escape(text) for c in "\0\r\x1f\x7f")


@given(ODD)
def test_every_text_comes_back_from_a_workbook(text):
    assert unescape(from_ooxml(to_ooxml(escape(text)))) == text
    assert from_ooxml("a_x000D_\nb_x0041_") == "a\r\nb_x0041_"  # as Excel writes a carriage return


@pytest.mark.parametrize("name", ["0001", "1e30", "12345678901234567890123456789012", "MARCH1", "=1+1", "TRUE", "-"])
def test_an_id_is_no_number_date_or_formula_to_a_spreadsheet(name):
    assert escape_id(name).startswith("[U+")
    assert escape_id("c" * 32) == "c" * 32


def test_cells_of_a_csv_file_do_not_run_and_those_of_a_workbook_are_texts(tmp_path):
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", " =1", "＝1", "#N/A", "plain"]
    selected = selection([{"question": text, "answer": text} for text in texts], flagged=len(texts))
    export_review(selected, tmp_path / "table.csv")
    cells = [row["answer"] for row in read_cells(tmp_path / "table.csv")]
    assert [unescape(cell) for cell in cells] == texts
    assert not any(cell.lstrip()[0] in "=+-@'＝" for cell in cells)
    export_review(selected, tmp_path / "table.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "table.xlsx").active
    column = [cell.value for cell in sheet[1]].index("answer")
    assert [row[column].value for row in sheet.iter_rows(min_row=2)] == texts
    assert {(row[column].data_type, row[column].number_format) for row in sheet.iter_rows(min_row=2)} == {("s", "@")}


def test_a_text_longer_than_a_cell_is_shown_in_part_told_and_never_read_back(tmp_path):
    long = "\U0001f9ff" * 20_000 + "word " * 8_000
    selected = selection([{"question": "q", "answer": long}, *questions(2)], flagged=2)
    (first, _) = ids(selected)
    for ending in (".csv", ".xlsx"):
        result = export_review(selected, tmp_path / f"table{ending}")
        assert result.cut == (first,)
        cell = read_cells(result.path)[0]["answer"]
        assert len(cell.encode("utf-16-le")) // 2 < 32_767
        assert "characters not shown here" in cell
        copied = fill_in(result.path, {first: {"decision": "edit", "corrected_answer": cell}})
        with pytest.raises(InputError, match="shown in part"):
            import_decisions(copied, selected)
    assert export_review(selected, tmp_path / "table.jsonl").cut == ()
    assert read_cells(tmp_path / "table.jsonl")[0]["answer"] == long
    outcome = import_decisions(fill_in(tmp_path / "table.jsonl", {first: {"decision": "keep"}}), selected)
    assert long in outcome.apply(selected).kept["answer"][:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_are_read_as_spreadsheets_save_them(tmp_path, encoding, delimiter, caplog):
    selected = chosen()
    export_review(selected, tmp_path / "table.csv")
    answer = {"decision": " Edit ", "corrected_answer": 'größer – "x"; y,\tz\nnew line', "annotator": "Zoë"}
    rows = [row | (answer if row[ROW] == ids(selected)[0] else {}) for row in read_cells(tmp_path / "table.csv")]
    path = write_cells(tmp_path / "saved.csv", rows, delimiter=delimiter, encoding=encoding)
    decision = import_decisions(path, selected).rows[0]
    assert (decision.status, decision.corrected_answer) == ("decided", answer["corrected_answer"])
    assert decision.annotators == ("Zoë",)
    assert ("Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_a_line_that_tells_the_delimiter_and_other_cases_and_orders_of_columns_are_read(tmp_path):
    selected = chosen()
    digest = content_digest(selected.flagged[0])
    text = f"sep=;\r\nDecision;CONTENT DIGEST;Larf_Row_ID;notes\r\nKEEP;{digest};{ids(selected)[0]};x\r\n;;;\r\n"
    (tmp_path / "maria.csv").write_text(text)
    (decision,) = import_decisions(tmp_path / "maria.csv", selected).rows
    assert (decision.decision, decision.annotators) == ("keep", ("maria",))


def table(tmp_path, selected, changes, name="table.csv", extra=()):
    """A table of decisions on all rows, with changes by the index of the row."""
    rows = [
        {ROW: row[ROW_ID], DIGEST: content_digest(row), "decision": "keep"} | changes.get(index, {})
        for index, row in enumerate(selected.flagged)
    ]
    return write_cells(tmp_path / name, [*rows, *extra])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decision": "remvoe"}, r"table.csv, row 3: no decision 'remvoe' \(did you mean remove\?\)"),
        ({"decision": "yes please"}, "wanted keep, remove, edit, unsure or nothing"),
        ({ROW: "0" * 32}, "1 decisions are on rows that the selection does not have, in table.csv, row 3"),
        ({ROW: ""}, "larf_row_id is empty"),
        ({DIGEST: " "}, "content_digest is empty"),
        ({"corrected_answer": "x" * 32_767}, "may be cut"),
    ],
)
def test_a_line_whose_decision_would_be_lost_is_refused_and_named(tmp_path, change, told):
    selected = chosen()
    with pytest.raises(InputError, match=told):
        import_decisions(table(tmp_path, selected, {1: change}), selected)


def test_all_wrong_lines_are_counted(tmp_path):
    selected = chosen(12, 10)
    wrong = {index: {"decision": "kep"} for index in range(8)}
    with pytest.raises(InputError, match=r"row 2: .*row 6: .*and 3 more: correct them"):
        import_decisions(table(tmp_path, selected, wrong), selected)


def test_unknown_ids_without_a_decision_do_no_harm(tmp_path):
    selected = chosen()
    path = table(tmp_path, selected, {}, extra=[{ROW: "unknown", DIGEST: "x"}])
    assert import_decisions(path, selected).counts == {"keep": 6}


def test_a_row_that_changed_since_is_stale_and_other_rows_are_not(tmp_path):
    selected = chosen()
    path = export_review(selected, tmp_path / "table.xlsx").path
    fill_in(path, {row: {"decision": "keep"} for row in ids(selected)})
    changed = selected.flagged.map(
        lambda row, index: row | ({"answer": "another"} if index == 2 else {}), with_indices=True
    )
    outcome = import_decisions(path, selected).apply(replace(selected, flagged=changed))
    again = import_decisions(path, replace(selected, flagged=changed)).apply(replace(selected, flagged=changed))
    for result in (outcome, again):
        assert [row.status for row in result.decisions.rows] == ["decided"] * 2 + ["stale"] + ["decided"] * 3
        assert result.withheld[ROW_ID][:] == [ids(selected)[2]]


def test_several_files_are_several_annotators_and_contradictions_are_conflicts(tmp_path):
    selected = chosen()
    alice = table(tmp_path, selected, {0: {"decision": "remove"}, 1: {"decision": ""}}, "alice.csv")
    bob = table(tmp_path, selected, {2: {"decision": "remove"}}, "bob.csv")
    decisions = import_decisions([alice, bob], selected)
    assert [row.status for row in decisions.apply(selected).decisions.rows][:3] == ["conflict", "decided", "conflict"]
    assert decisions.rows[0].annotators == ("alice", "bob")
    arbiter = import_decisions([alice, bob], selected, merge="arbiter:alice")
    assert (arbiter.rows[0].decision, arbiter.rows[2].decision) == ("remove", "keep")
    with pytest.raises(InputError, match="wanted an arbiter among alice, bob, got 'carol'"):
        import_decisions([alice, bob], selected, merge="arbiter:carol")


def test_one_annotator_who_decides_a_row_twice_is_told(tmp_path, caplog):
    selected = chosen()
    line = {ROW: ids(selected)[0], DIGEST: content_digest(selected.flagged[0])}
    same = table(tmp_path, selected, {}, extra=[line | {"decision": "Keep"}])
    assert import_decisions(same, selected).counts == {"keep": 6}
    assert "the same decision twice: table.csv, row 2 and table.csv, row 8" in caplog.text
    other = table(tmp_path, selected, {}, extra=[line | {"decision": "remove"}])
    with pytest.raises(InputError, match="table decided one row twice and differently, in table.csv, row 2 and"):
        import_decisions(other, selected)
    named = table(tmp_path, selected, {}, extra=[line | {"decision": "remove", "annotator": "bob"}])
    assert import_decisions(named, selected).counts == {"conflict": 1, "keep": 5}


def test_what_does_not_count_is_told(tmp_path, caplog):
    selected = chosen()
    changes = {
        0: {"decision": "edit"},
        1: {"corrected_answer": "unused"},
        2: {"decision": "", "comment": "hm"},
        3: {"decision": ""},
        4: {"answer": "edited here", "text": "user: What is 4 plus one?\r\n\r\nassistant:  It is 5."},
    }
    outcome = import_decisions(table(tmp_path, selected, changes), selected).apply(selected)
    assert [row.status for row in outcome.decisions.rows] == ["pending", "decided", "pending", "pending"] + [
        "decided"
    ] * 2
    told = {record.message for record in caplog.records if record.name == "larf_curate.review.files.imports"}
    assert told == {
        "edit without a corrected answer, not counted as decided: table.csv, row 2",
        "corrected answer without the decision edit, not used: table.csv, row 3",
        "comment or answer without a decision, so undecided: table.csv, row 4",
        "the shown text differs from that of the row, which has no effect: table.csv, row 6 (answer)",
    }


def test_decisions_on_rows_that_are_no_longer_flagged_are_those_of_pull(tmp_path):
    selected = chosen()
    path = table(tmp_path, selected, {0: {"decision": "remove"}})
    fewer = replace(selected, flagged=selected.flagged.select(range(1, 6)), kept=selected.flagged.select([0]))
    with pytest.raises(InputError, match="people decided against 1 rows that this selection does not flag"):
        import_decisions(path, fewer).apply(fewer)


def sheet_of(tmp_path, selected):
    path = table(tmp_path, selected, {}, "table.xlsx")
    book = openpyxl.load_workbook(path)
    return book, book.active, path


def test_cells_of_a_workbook_that_are_no_texts_are_refused(tmp_path):
    selected = chosen()
    column = COLUMNS.index("corrected_answer") + 1
    for value, told in (
        ("=A1", "a formula"),
        (datetime(2026, 1, 2), "a date"),
        (1.5, "a number"),
        (True, "a truth value"),
    ):
        book, sheet, path = sheet_of(tmp_path, selected)
        sheet.cell(3, column).value = value
        book.save(path)
        with pytest.raises(InputError, match=f"row 3: corrected_answer is {told}"):
            import_decisions(path, selected)
    book, sheet, path = sheet_of(tmp_path, selected)
    sheet.merge_cells(start_row=2, end_row=4, start_column=6, end_column=6)
    book.save(path)
    with pytest.raises(InputError, match=r"merged cells \(F2:F4\)"):
        import_decisions(path, selected)
    book, sheet, path = sheet_of(tmp_path, selected)
    book.copy_worksheet(sheet)
    book.save(path)
    with pytest.raises(InputError, match="2 sheets with decisions"):
        import_decisions(path, selected)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", "has no column larf_row_id"),
        ("a.csv", b"id,decision\n1,keep\n", "has no column larf_row_id and no column content_digest"),
        ("a.csv", b'larf_row_id,content_digest,decision\n1,2,"keep\n', "no complete CSV"),
        ("a.csv", b"larf_row_id,content_digest,decision\n1,2,keep,4\n", "has 4 cells, wanted 3"),
        ("a.csv", b"larf_row_id,content_digest,decision,decision\n", "column decision twice"),
        ("a.csv", b"\x81\x8d\xff", "neither UTF-8"),
        ("a.jsonl", b"{", "line 1 is not valid JSON"),
        ("a.jsonl", b'{"larf_row_id": "1", "content_digest": ["2"]}', "wanted a text in content_digest"),
        ("a.jsonl", b"[1]", "wanted larf_row_id and content_digest in a.jsonl, line 1"),
        ("a.json", b'{"kind": "larf-curate review page", "version": 2}', "another version of the review page"),
        ("a.json", b'[{"id": 1, "data": {"image": "x"}, "annotations": []}]', "it is of another project"),
        ("a.json", b"3", "wanted larf_row_id"),
        ("a.xlsx", b"PK\x03\x04 not a workbook", "cannot read"),
        ("a.parquet", b"PAR1", "cannot read"),
        ("a.ods", b"", "wanted a file ending in"),
    ],
)
def test_files_that_are_no_decisions_are_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        import_decisions(tmp_path / name, chosen())


def annotated(tasks, answers, person=1):
    """Tasks as Label Studio exports them, with an annotation of a person by row id."""
    exported = []
    for number, task in enumerate(tasks, 1):
        results = [
            {"from_name": name, "to_name": "text", "type": kind, "value": {key: [answers[task["data"][ROW]][name]]}}
            for name, kind, key in (("decision", "choices", "choices"), ("corrected_answer", "textarea", "text"))
            if name in answers.get(task["data"][ROW], {})
        ]
        annotation = {"id": number, "completed_by": person, "result": results, "was_cancelled": False}
        annotation |= {"updated_at": "2026-03-09T22:16:08.728378Z"}
        exported.append({"id": number, "data": task["data"], "annotations": [annotation] if results else []})
    return exported


@pytest.mark.parametrize(
    ("annotations", "told"),
    [
        ([{"result": [{"from_name": "choice", "value": {"choices": ["remove"]}}]}], "answers named choice, wanted one"),
        ([101], "annotations without content"),
        ({"1": {"result": []}}, "annotations without content"),
    ],
)
def test_label_studio_annotations_that_would_be_lost_are_refused(tmp_path, annotations, told):
    selected = chosen()
    tasks = json.loads(export_review(selected, tmp_path / "tasks.json").path.read_text())
    (tmp_path / "export.json").write_text(json.dumps([tasks[0] | {"annotations": annotations}, *tasks[1:]]))
    with pytest.raises(InputError, match=f"export.json, task 1: .*{told}"):
        import_decisions(tmp_path / "export.json", selected)


def test_an_answer_of_label_studio_cannot_change_which_row_it_is_about(tmp_path):
    selected = chosen()
    tasks = json.loads(export_review(selected, tmp_path / "tasks.json").path.read_text())
    results = [
        {"from_name": name, "value": {"choices": [text]}}
        for name, text in {"decision": "remove", ROW: ids(selected)[1]}.items()
    ]
    (tmp_path / "export.json").write_text(json.dumps([tasks[0] | {"annotations": [{"result": results}]}]))
    (decision,) = import_decisions(tmp_path / "export.json", selected).rows
    assert (decision.row_id, decision.decision) == (ids(selected)[0], "remove")


def test_keys_of_objects_are_read_in_any_case_and_misspelt_ones_are_refused(tmp_path):
    selected = chosen()
    rows = [{ROW: row[ROW_ID], DIGEST: content_digest(row)} for row in selected.flagged]
    write_cells(tmp_path / "a.jsonl", [row | {"Decision": "remove"} for row in rows])
    assert import_decisions(tmp_path / "a.jsonl", selected).counts == {"remove": len(rows)}
    write_cells(tmp_path / "a.jsonl", [row | {"desicion": "remove"} for row in rows])
    with pytest.raises(InputError, match="line 1: has desicion, wanted decision"):
        import_decisions(tmp_path / "a.jsonl", selected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_without_decisions_is_told(tmp_path, ending, caplog):
    selected = chosen()
    maria = table(tmp_path, selected, {}, "maria.csv")
    export_review(selected, tmp_path / f"ben{ending}")
    assert import_decisions([maria, tmp_path / f"ben{ending}"], selected).counts == {"keep": 6}
    assert f"no decision in the file: ben{ending}" in caplog.text
    assert "maria" not in caplog.text


def repacked(path, part, change):
    """A workbook of which the XML of a part is another one."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def with_row(number, cell):
    """A change of a sheet that adds a row with a cell."""
    row = f'<row r="{number}"><c r="{cell}{number}" t="inlineStr"><is><t>x</t></is></c></row></sheetData>'
    return lambda sheet: sheet.replace(b"</sheetData>", row.encode())


ENTITIES = b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 20) for i in range(8))
LAUGHS = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + ENTITIES + b"]><worksheet>&i;</worksheet>"


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("xl/worksheets/sheet1.xml", with_row(1_048_576, "A"), "1,048,576 rows and 10 columns: delete"),
        ("xl/worksheets/sheet1.xml", lambda sheet: sheet + b" " * 2**27, "it expands to"),
        ("xl/worksheets/sheet1.xml", lambda sheet: LAUGHS, "cannot read"),
        ("xl/worksheets/sheet1.xml", lambda sheet: b"<x", "cannot read"),
        ("xl/workbook.xml", lambda sheet: b"<x", "cannot read"),
        ("xl/workbook.xml", lambda sheet: b"<x/>", "no sheet with cells"),
        ("xl/styles.xml", lambda sheet: b"<x/>", "cannot read"),
    ],
)
def test_workbooks_that_are_damaged_or_would_take_all_memory_are_refused(tmp_path, part, change, told):
    selected = chosen()
    path = export_review(selected, tmp_path / "table.xlsx").path
    with pytest.raises(InputError, match=told):
        import_decisions(repacked(path, part, change), selected)


def test_a_stray_cell_far_to_the_right_costs_nothing(tmp_path):
    selected = chosen()
    path = export_review(selected, tmp_path / "table.xlsx").path
    repacked(path, "xl/worksheets/sheet1.xml", with_row(3_000, "XFD"))
    assert not import_decisions(path, selected).rows


def test_workbooks_with_wrong_bytes_are_refused_or_read(tmp_path):
    selected, random_ = chosen(), random.Random(0)
    content = export_review(selected, tmp_path / "table.xlsx").path.read_bytes()
    refused = 0
    for _ in range(30):
        damaged = bytearray(content)
        for _ in range(5):
            damaged[random_.randrange(len(damaged))] = random_.randrange(256)
        (tmp_path / "table.xlsx").write_bytes(damaged)
        try:
            import_decisions(tmp_path / "table.xlsx", selected)
        except InputError:
            refused += 1
    assert refused > 10


def test_a_parquet_file_of_rows_without_values_is_refused(tmp_path):
    nothing = pa.nulls(5_000_000, pa.string())
    pq.write_table(pa.table({ROW: nothing, DIGEST: nothing, "decision": nothing}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="5,000,000 rows, wanted at most"):
        import_decisions(tmp_path / "a.parquet", chosen())


def test_a_parquet_file_that_expands_to_all_memory_is_refused(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), ["x" * 70_000_000])
    pq.write_table(pa.table({ROW: texts, DIGEST: ["a", "b"], "decision": ["keep", "keep"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="larger than 64 MiB"):
        import_decisions(tmp_path / "a.parquet", chosen())


def test_label_studio_tasks_come_back_as_its_export(tmp_path):
    import xml.etree.ElementTree as ElementTree

    selected = chosen()
    result = export_review(selected, tmp_path / "tasks.json")
    config = ElementTree.fromstring(result.config.read_text())
    assert result.config == tmp_path / "tasks.xml"
    assert [choice.get("value") for choice in config.iter("Choice")] == list(NAMES)
    tasks = json.loads(result.path.read_text())
    shown = {tag.get("value")[1:] for tag in config.iter("Text")}
    assert shown <= set(tasks[0]["data"])
    assert {tag.get("toName") for tag in config.iter() if tag.get("toName")} == {"text"}
    answers = answers_for(selected)
    person = {"id": 7, "email": "maria"}
    (tmp_path / "export.json").write_text(json.dumps(annotated(tasks, answers, person)))
    bare = {row: {name: text for name, text in given.items() if name != "comment"} for row, given in answers.items()}
    assert import_decisions(tmp_path / "export.json", selected).apply(selected).decisions == (
        from_a_queue(selected, bare).decisions
    )


def test_label_studio_annotations_that_were_skipped_or_made_again_count_as_they_should(tmp_path, caplog):
    selected = chosen()
    tasks = json.loads(export_review(selected, tmp_path / "tasks.json").path.read_text())
    exported = annotated(tasks, {row: {"decision": "keep"} for row in ids(selected)[:3]})
    exported[0]["annotations"][0]["was_cancelled"] = True
    later = annotated(tasks, {ids(selected)[1]: {"decision": "remove"}})[1]["annotations"][0]
    exported[1]["annotations"].append(later | {"updated_at": "2026-03-10T00:00:00Z"})
    exported[2]["annotations"].append({"completed_by": 2, "result": [], "was_cancelled": False})
    (tmp_path / "export.json").write_text(json.dumps(exported))
    rows = import_decisions(tmp_path / "export.json", selected).apply(selected).decisions.rows
    assert [(row.status, row.decision, row.discards) for row in rows[:3]] == [
        ("pending", None, 1),
        ("decided", "remove", 0),
        ("decided", "keep", 0),
    ]
    assert "of which the later one counts" in caplog.text
    flat = [{ROW: row, DIGEST: content_digest(line), "decision": "keep", "annotator": 5, "id": 1}
            for row, line in zip(ids(selected), selected.flagged, strict=True)]  # its JSON-MIN  # fmt: skip
    (tmp_path / "min.json").write_text(json.dumps(flat))
    assert import_decisions(tmp_path / "min.json", selected).rows[0].annotators == ("5",)
    assert "hotkey" in CONFIG


def test_the_commands_export_and_import_and_name_what_comes_next(tmp_path, own_caches, monkeypatch):
    monkeypatch.chdir(tmp_path)
    selected = chosen()
    selected.save("selection")

    def run(*words, code=0):
        result = CliRunner().invoke(main, ["review", *words])
        assert result.exit_code == code, result.output
        return result.output

    assert "no selection was exported from this machine" in run(
        "import", str(table(tmp_path, selected, {})), "-o", "d", code=2
    )
    assert "Next: larf-curate review import review.xlsx -o decisions" in run("export", "selection", "--to", "xlsx")
    assert "may hold decisions" in run("export", "selection", "--to", "review.xlsx", code=2)
    tasks = run("export", "selection", "--to", "label-studio")
    assert "label-studio.xml" in tasks
    assert "import export.json" in tasks  # not the tasks, which have no decisions
    assert json.loads(run("export", "selection", "--to", "t.jsonl", "--json"))["rows"] == 6
    fill_in(tmp_path / "review.xlsx", {row: {"decision": "remove"} for row in ids(selected)})
    told = run("import", "review.xlsx", "-o", "decisions")
    assert "Selection selection, the one last exported from this machine" in told.replace(f"{tmp_path}/", "")
    assert "Next: larf-curate publish decisions" in told
    assert Decisions.load("decisions").counts == {"remove": 6}
    result = json.loads(run("import", "review.xlsx", "-o", "decisions", "--json"))  # and nothing besides
    assert (result["counts"]["removed"], result["selection"].split("/")[-1]) == (6, "selection")
    assert "last exported" not in run("import", "review.xlsx", "-o", "decisions", "--selection", "selection")
    assert "did you mean" in run("import", str(table(tmp_path, selected, {0: {"decision": "kep"}})), "-o", "d", code=2)


WORDS = (
    *("=1+1", "+49", "-5", "@x", "'quoted'", '"quoted"', "a,b;c\td", "line\nbreak", "line\r\nbreak", "\0", "\x01\x1f"),
    *(
        "\x7f\x85",
        "007",
        "1e5",
        "2026-01-02",
        "TRUE",
        "#N/A",
        "_x0041_",
        "[U+0041]",
        "\u2028",
        " ",
        "\ufb01 ß İ",
        "你好",
    ),
    *("\U0001f469\u200d\U0001f467", "שלום עולם", "مرحبا"),
)


def odd_texts(n, seed=0):
    rng = random.Random(seed)
    texts = ["".join(rng.choices(WORDS, k=rng.randint(1, 6))) or "x" for _ in range(n - 3)]
    return [*texts, "word " * 8_000, "\U0001f9ff" * 20_000, "=" * 40_000]


def typed(text):
    """What a person can type into a cell: no control characters, and nothing that XML would change."""
    return "".join(c for c in text if c.isprintable() or c == "\n").strip()[:1000] or "x"


@pytest.mark.slow
@pytest.mark.timeout(600)
@at_length
@pytest.mark.skipif(not shutil.which("soffice"), reason="needs LibreOffice")
def test_a_thousand_odd_rows_come_back_from_libreoffice(tmp_path):
    """Export, decide, convert as LibreOffice saves, import: every decision and corrected answer is as it was typed."""
    texts = odd_texts(1000)
    selected = selection([{"question": text, "answer": text[::-1]} for text in texts] + questions(1), flagged=1000)
    rng = random.Random(1)
    answers = {row: {"decision": rng.choice(NAMES), "annotator": "maria"} for row in ids(selected)}
    for row, line in zip(ids(selected), selected.flagged, strict=True):
        if answers[row]["decision"] == "edit":
            answers[row]["corrected_answer"] = typed(line["question"])

    def convert(path, ending, folder, *, read="--infilter=Text - txt - csv (StarCalc):44,34,76,1"):
        command = [
            "soffice",
            "--headless",
            f"-env:UserInstallation=file://{tmp_path}/office",
            *[read] * (path.suffix == ".csv"),
            "--convert-to",
        ]
        (tmp_path / folder).mkdir()
        filters = {"csv": "csv:Text - txt - csv (StarCalc):44,34,76,1"}  # as CSV in UTF-8, every cell as shown
        subprocess.run([*command, filters.get(ending, ending), "--outdir", tmp_path / folder, path], check=True)
        return tmp_path / folder / f"{path.stem}.{ending}"

    workbook = fill_in(export_review(selected, tmp_path / "table.xlsx").path, answers)
    opened = convert(export_review(selected, tmp_path / "plain.csv").path, "xlsx", "opened")
    formulas = [cell for row in openpyxl.load_workbook(opened).active for cell in row if cell.data_type == "f"]
    assert formulas == []
    assert import_decisions(opened, selected).counts == {}
    garbled = convert(tmp_path / "plain.csv", "xlsx", "garbled", read="--nologo")  # as Windows-1252
    few = {row: {"decision": "keep"} for row in ids(selected)[:5]}
    assert import_decisions(fill_in(garbled, few), selected).counts == {"keep": 5}
    with pytest.raises(InputError, match="row 2: comment may be garbled"):
        import_decisions(fill_in(garbled, {ids(selected)[0]: {"comment": "größer"}}), selected)
    ways = {
        "workbook": workbook,
        "workbook as ODS and back": convert(convert(workbook, "ods", "ods"), "xlsx", "xlsx"),
        "workbook saved as CSV": convert(workbook, "csv", "csv"),
        "CSV file opened, filled in and saved": convert(fill_in(opened, answers), "csv", "saved"),
    }
    want = from_a_queue(selected, answers).decisions
    for way, path in ways.items():
        assert import_decisions(path, selected).apply(selected).decisions == want, way


def test_an_edit_that_leaves_the_answer_as_it_was_is_no_edit(tmp_path, caplog):
    selected = chosen()
    first, second, third, *_ = ids(selected)
    answers = dict(zip(ids(selected), selected.flagged["answer"][:], strict=True))
    given = {
        first: {"decision": "edit", "corrected_answer": f"{answers[first]}\n"},
        second: {"decision": "edit", "corrected_answer": "Better."},
        third: {"decision": "keep", "corrected_answer": answers[third]},
    }
    outcome = decided(selected, tmp_path / "table.csv", given)
    assert "edit that leaves the answer as it was, not counted as decided: table.csv" in caplog.text
    assert {row[ROW_ID]: row["answer"] for row in outcome.kept if row[ROW_ID] in answers} == {
        second: "Better.",
        third: answers[third],
    }
    assert first in outcome.withheld[ROW_ID][:]


def test_answers_that_are_lost_when_a_folder_is_written_again_are_told(tmp_path, caplog):
    selected = chosen()
    first = ids(selected)[:4]
    queue = from_a_queue(selected, {row: {"decision": "remove", "annotator": "ann"} for row in first})
    queue.save(tmp_path / "decisions")
    queue.save(tmp_path / "decisions")
    assert not caplog.text
    both = [*answers_for(selected).items()][2:]
    files = decided(selected, tmp_path / "table.csv", dict(both))
    files.save(tmp_path / "decisions")
    assert "has answers of ann to 4 rows that are not among the decisions which replace it now" in caplog.text
    assert Decisions.load(tmp_path / "decisions").counts == {"edit": 1, "pending": 4, "unsure": 1}
    caplog.clear()
    more = decided(selected, tmp_path / "more.csv", answers_for(selected))
    more.save(tmp_path / "decisions")
    assert not caplog.text


def test_folders_whose_earlier_decisions_cannot_be_read_are_replaced(tmp_path, caplog):
    selected = chosen()
    outcome = from_a_queue(selected, answers_for(selected))
    outcome.save(tmp_path / "decisions")
    (tmp_path / "decisions" / "decisions.parquet").write_bytes(b"PAR1")
    outcome.save(tmp_path / "decisions")
    assert Decisions.load(tmp_path / "decisions").counts == {
        "edit": 1,
        "keep": 1,
        "pending": 2,
        "remove": 1,
        "unsure": 1,
    }
