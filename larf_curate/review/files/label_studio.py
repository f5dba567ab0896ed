"""Label Studio: tasks to import there with their labeling configuration, and annotations from its JSON export.

Formats: https://labelstud.io/guide/task_format and https://labelstud.io/guide/export
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from larf_curate.review.argilla.settings import DECISIONS
from larf_curate.review.files.line import DIGEST, ROW, SHOWN, Line, parse_time
from larf_curate.review.files.rows import ReviewRow

CONFIG = f"""\
<View>
  <Style>.htx-text {{ white-space: pre-wrap; }}</Style>
  <Text name="text" value="$text" valueType="text" selectionEnabled="false"/>
  <Header value="Why it was flagged" size="4"/>
  <Text name="evidence" value="$evidence" valueType="text" selectionEnabled="false"/>
  <Header value="What should happen to this row?" size="4"/>
  <Choices name="decision" toName="text" choice="single" required="true" showInline="true">
{chr(10).join(f'    <Choice value="{name}" hotkey="{key}"/>' for key, name in enumerate(DECISIONS, 1))}
  </Choices>
  <View visibleWhen="choice-selected" whenTagName="decision" whenChoiceValue="edit">
    <Header value="Corrected answer: the new text of the last assistant turn" size="4"/>
    <TextArea name="corrected_answer" toName="text" rows="8" maxSubmissions="1" editable="true"/>
  </View>
  <TextArea name="comment" toName="text" rows="1" maxSubmissions="1" editable="true" placeholder="Comment (optional)"/>
</View>
"""
"""Labeling configuration: paste it into the project's settings, Labeling Interface, Code."""


ASKED = ("decision", "corrected_answer", "comment")
"""Names of what it asks for; other answers are of another configuration."""


def tasks(rows: Iterable[ReviewRow]) -> list[dict[str, Any]]:
    """One task per row, whose data comes back with its annotations."""
    return [
        {
            "data": {
                ROW: row.row_id,
                DIGEST: row.content_digest,
                "score": row.score,
                "text": row.text,
                "evidence": row.evidence,
            }
        }
        for row in rows
    ]


def is_task(value: object) -> bool:
    """Whether a JSON value is a task of Label Studio, of any project."""
    return isinstance(value, dict) and isinstance(value.get("data"), dict)


def annotation_lines(task: Mapping[str, Any], place: str) -> Iterator[Line]:
    """The annotations of a task as lines; one without a decision if there are none.

    Args:
        task: A task of this package's export.
        place: Where it is, for messages.
    """
    data = {name: str(task["data"].get(name) or "") for name in (ROW, DIGEST, *SHOWN)}
    annotations = task.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(item, dict) for item in annotations):
        yield Line(place=place, cells=data, problem="has annotations without content, wanted the export as JSON")
        return
    for annotation in annotations:
        found = dict(_answers(annotation.get("result")))
        answers = {name: found[name] for name in ASKED if name in found}
        discarded = bool(annotation.get("was_cancelled"))
        yield Line(
            place=place,
            cells=data
            | {name: answers[name] for name in ASKED if name in answers}
            | {"annotator": _name(annotation.get("completed_by"))},
            time=parse_time(annotation.get("updated_at") or annotation.get("created_at")),
            discarded=discarded,
            problem=_unknown(found) if found and not answers and not discarded else "",
        )
    if not annotations:
        yield Line(place=place, cells=data)


def _unknown(answers: Iterable[str]) -> str:
    got = ", ".join(answers)[:80]
    return f"has answers named {got}, wanted one named decision: use the labeling configuration of review export"


def _answers(results: object) -> Iterator[tuple[str, str]]:
    """Name and text of each answer; a text area has one text per submission."""
    for result in results if isinstance(results, list) else ():
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict):
            found = value.get("choices", value.get("text"))
            texts = found if isinstance(found, list) else [found]
            name = str(result.get("from_name"))
            yield name, "\n".join(str(text) for text in texts if text is not None)


def _name(person: object) -> str:
    """Who annotated: the email address if the export has it, else the number of the user."""
    if isinstance(person, Mapping):
        person = person.get("email") or person.get("id")
    return "" if person is None else str(person)
