"""Decisions from files, merged by the same rules as those from Argilla."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from larf_curate.columns import ROW_ID, content_digest, stateless
from larf_curate.data.tables import undecoded
from larf_curate.errors import InputError
from larf_curate.review.argilla.settings import DECISIONS
from larf_curate.review.decisions.merge import MergeRule, merge_records
from larf_curate.review.decisions.outcome import Decisions
from larf_curate.review.decisions.responses import Judgement, ReviewedRecord
from larf_curate.review.files.cells import MAX_CELL, unescape, utf16_units
from larf_curate.review.files.export import shown_cells
from larf_curate.review.files.line import DIGEST, ROW, SHOWN, Line
from larf_curate.review.files.reading import read_lines
from larf_curate.review.files.rows import review_rows
from larf_curate.review.records.record import answer_digest
from larf_curate.scoring.selection import Selection

logger = logging.getLogger(__name__)
LISTED = 5
"""Problems that a message lists."""
NOTE = "characters not shown here; the row itself is complete"
"""Part of the note in a text that is shown in part; a corrected answer with it was copied from there."""
UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class _Answer:
    """What one annotator decided on one row, and where it was read."""

    line: Line
    judgement: Judgement


def import_decisions(
    files: str | Path | Sequence[str | Path], selection: Selection, *, merge: str = "majority"
) -> Decisions:
    """Read decisions from files, and merge them as `ReviewQueue.pull` merges those of a queue.

    Nothing is left out silently: what cannot be a decision is an error that lists the lines, and what does not count is
    a warning.

    Args:
        files: A file, or several; see `read_lines`. Who decided is in the column ``annotator``, else it is the name of
            the file.
        selection: The selection that was exported.
        merge: Rule that merges several annotators' answers; see `ReviewQueue.pull`.

    Raises:
        InputError: If a file cannot be read, a decision is none of ``keep``, ``remove``, ``edit`` and ``unsure``, a row
            is not in the selection, an annotator decided one row twice and differently, or there is no such rule or
            arbiter.
    """
    rule = MergeRule.parse(merge)
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    answers = _answers(paths)
    digests = _digests(selection, {answer.line[ROW] for answer in answers})
    _check_known(answers, selection, digests)
    _warn_of_edited_texts(answers, selection, digests)
    latest = _one_per_annotator(_with_corrections_alone(answers, selection))
    names = sorted({answer.judgement.annotator for answer in latest})
    if rule.arbiter and rule.arbiter not in names:
        raise InputError(f"wanted an arbiter among {', '.join(names) or 'nobody'}, got {rule.arbiter!r}")
    return Decisions(merge_records(_records(latest, digests), rule), merge)


def _answers(paths: Iterable[Path]) -> list[_Answer]:
    """The filled-in lines of all files as judgements."""
    lines = [(path, line) for path in paths for line in read_lines(path)]
    problems = [f"{line.place}: {problem}" for _, line in lines for problem in _problems(line)]
    if problems:
        raise InputError(f"{_listed(problems)}: correct {'it' if len(problems) == 1 else 'them'} and import again")
    answers = [_Answer(line, _judgement(line, path.stem)) for path, line in lines if _is_filled_in(line)]
    _warn_of_unused(answers)
    used = {path for path, line in lines if _is_filled_in(line)}
    if unused := [path.name for path in dict.fromkeys(paths) if path not in used]:
        _warn({"no decision in the file": unused})
    return answers


def _is_filled_in(line: Line) -> bool:
    return bool(_decision(line) or line.discarded or line["corrected_answer"].strip() or line["comment"].strip())


def _decision(line: Line) -> str:
    return line["decision"].strip().casefold()


def _problems(line: Line) -> Iterator[str]:
    """What is wrong with a line, so that its decision would be lost or taken for another one."""
    if line.problem:
        yield line.problem
    decision = _decision(line)
    if decision and decision not in DECISIONS:
        near = get_close_matches(decision, DECISIONS, 1)
        meant = f" (did you mean {near[0]}?)" if near else f", wanted {', '.join(DECISIONS)} or nothing"
        yield f"no decision {line['decision'].strip()[:40]!r}{meant}"
    if _is_filled_in(line) and not line[ROW]:
        yield f"{ROW} is empty"
    if _is_filled_in(line) and line[ROW] and not line[DIGEST].strip():
        yield f"{DIGEST} is empty, so nobody knows which text was decided on"
    if NOTE in line["corrected_answer"]:
        yield "the corrected answer has the note of a text that was shown in part: export to .jsonl for the whole text"
    if utf16_units(line["corrected_answer"]) == MAX_CELL:
        yield f"the corrected answer has {MAX_CELL:,} characters, the limit of a cell, and may be cut: use .jsonl"


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - LISTED:,} more" if len(problems) > LISTED else ""
    return "; ".join(problems[:LISTED]) + more


def _judgement(line: Line, name: str) -> Judgement:
    """The judgement of a line; without a decision it is a draft, which does not count."""
    decision = _decision(line)
    return Judgement(
        annotator=line["annotator"].strip() or name,
        status="discarded" if line.discarded else "submitted" if decision else "draft",
        decision=decision or None,
        category=None,
        severity=None,
        rationale=line["comment"].strip() or None,
        corrected_answer=line["corrected_answer"] or None,
        time=line.time or UNKNOWN_TIME,
        outdated=False,
    )


def _warn_of_unused(answers: Sequence[_Answer]) -> None:
    """Tell what is filled in and has no effect."""
    unused: dict[str, list[str]] = {}
    for answer in answers:
        decision, corrected = answer.judgement.decision, (answer.judgement.corrected_answer or "").strip()
        if decision == "edit" and not corrected:
            unused.setdefault("edit without a corrected answer, not counted as decided", []).append(answer.line.place)
        if decision != "edit" and corrected:
            unused.setdefault("corrected answer without the decision edit, not used", []).append(answer.line.place)
        if decision is None and not answer.line.discarded:
            unused.setdefault("comment or answer without a decision, so undecided", []).append(answer.line.place)
    _warn(unused)


def _warn(found: Mapping[str, Sequence[str]]) -> None:
    """Tell what has no effect, and where."""
    for what, places in found.items():
        logger.warning("%s: %s", what, _listed(places))


def _with_corrections_alone(answers: Sequence[_Answer], selection: Selection) -> list[_Answer]:
    """The answers, without corrected answers that are those of the rows: such an edit decides nothing."""
    edited = {one.line[ROW] for one in answers if one.judgement.decision == "edit" and one.judgement.corrected_answer}
    rows = review_rows(selection) if edited else ()
    originals = {row.row_id: answer_digest(row.answer) for row in rows if row.row_id in edited and row.answer}
    kept, told = [], []
    for one in answers:
        text = one.judgement.corrected_answer
        if one.line[ROW] in edited and text and answer_digest(text) == originals.get(one.line[ROW]):
            told += [one.line.place] if one.judgement.decision == "edit" else []
            one = replace(one, judgement=replace(one.judgement, corrected_answer=None))
        kept.append(one)
    _warn({"edit that leaves the answer as it was, not counted as decided": told} if told else {})
    return kept


def _warn_of_edited_texts(answers: Sequence[_Answer], selection: Selection, digests: Mapping[str, str]) -> None:
    """Tell where the shown text of a row was edited in place of its corrected answer."""
    judged = {one.line[ROW]: one for one in answers if one.line[DIGEST].strip() == digests.get(one.line[ROW])}
    edited = []
    for row in review_rows(selection) if judged else ():
        if answer := judged.get(row.row_id):
            texts, shown = {"text": row.text, "answer": row.answer or ""}, shown_cells(row)
            for name in SHOWN:
                known = {_words(text) for text in (texts[name], unescape(shown[name]))}
                if answer.line[name] and _words(answer.line[name]) not in known:
                    edited.append(f"{answer.line.place} ({name})")
    _warn({"the shown text differs from that of the row, which has no effect": edited} if edited else {})


def _words(text: str) -> str:
    """A text without what programs change in spaces and line breaks, nor the characters that they cannot hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _digests(selection: Selection, wanted: set[str]) -> dict[str, str]:
    """Content digests of the flagged rows with these ids."""
    flagged = undecoded(stateless(selection.flagged))
    ids = flagged.with_format(None)[ROW_ID][:]
    rows = flagged.select([index for index, name in enumerate(ids) if name in wanted])
    return {row[ROW_ID]: content_digest(row) for row in rows}


def _check_known(answers: Sequence[_Answer], selection: Selection, digests: Mapping[str, str]) -> None:
    """Refuse decisions on rows that are not in the selection: they would be lost."""
    others = {answer.line[ROW] for answer in answers} - set(digests)
    unknown = others - set(selection.kept.with_format(None)[ROW_ID][:]) if others else set()
    places = [f"{answer.line.place} ({answer.line[ROW][:40]})" for answer in answers if answer.line[ROW] in unknown]
    if places:
        raise InputError(
            f"{len(places)} decisions are on rows that the selection does not have, in {_listed(places)}: give the "
            "selection that was exported (--selection), or correct the ids"
        )


def _one_per_annotator(answers: Sequence[_Answer]) -> list[_Answer]:
    """One answer per row and annotator: of several that differ the latest, if their times are known.

    Raises:
        InputError: If they differ and nobody knows which is the latest.
    """
    found: dict[tuple[str, str], _Answer] = {}
    problems: list[str] = []
    told: dict[str, list[str]] = {}
    for answer in answers:
        key = (answer.line[ROW], answer.judgement.annotator)
        earlier = found.setdefault(key, answer)
        if earlier is answer:
            continue
        both = f"{earlier.line.place} and {answer.line.place}"
        if _content(earlier) == _content(answer):
            told.setdefault("the same decision twice", []).append(both)
        elif earlier.line.time and answer.line.time and earlier.line.time != answer.line.time:
            found[key] = max(earlier, answer, key=lambda one: one.judgement.time)
            told.setdefault("two decisions of one annotator, of which the later one counts", []).append(both)
        else:
            problems.append(f"{key[1]} decided one row twice and differently, in {both}")
    if problems:
        raise InputError(
            f"{_listed(problems)}: remove one of each, or name the annotators in the column annotator, so that the "
            "merge rule decides"
        )
    _warn(told)
    return list(found.values())


def _content(answer: _Answer) -> tuple[object, ...]:
    judged = answer.judgement
    return judged.status, judged.decision, judged.corrected_answer, judged.rationale, answer.line[DIGEST].strip()


def _records(answers: Sequence[_Answer], digests: Mapping[str, str]) -> list[ReviewedRecord]:
    """The answers by row; those to another content of the row are outdated, as those in Argilla are."""
    by_row: dict[str, list[_Answer]] = {}
    for answer in answers:
        by_row.setdefault(answer.line[ROW], []).append(answer)
    records = []
    for row_id, given in by_row.items():
        digest = digests.get(row_id, given[0].line[DIGEST].strip())
        judgements = [replace(one.judgement, outdated=one.line[DIGEST].strip() != digest) for one in given]
        records.append(
            ReviewedRecord(
                row_id=row_id,
                content_digest=digest,
                done=any(judgement.counts for judgement in judgements),
                judgements=tuple(sorted(judgements, key=lambda judgement: judgement.annotator)),
            )
        )
    return records
