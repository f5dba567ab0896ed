"""No path of this machine in any published byte, whatever the rows, the profile and the model come from."""

import getpass
import io
import json
import logging
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, Json, LargeList, List, Pdf, Value, Video, load_dataset
from PIL import Image as Pillow

from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import open_source
from larf_curate.data.tables import from_undecoded
from larf_curate.errors import InputError
from larf_curate.profile import SafetyProfile
from larf_curate.publish import publish
from larf_curate.publish.media import public_file_name
from larf_curate.report import write_report
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import select
from tests.fixtures.decisions_folder import scored_record
from tests.fixtures.models import PROFILE
from tests.fixtures.scored_folder import digest_of

pytestmark = pytest.mark.usefixtures("own_caches")
SECRET = "alice-secret-folder"


def png(colour) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (2, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png("red")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, whose name must not be published, with a file of each kind of media."""
    folder = tmp_path / SECRET
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "red.png").write_bytes(PNG)
    (folder / "a.wav").write_bytes(b"RIFF....WAVEfmt ")
    (folder / "a.mp4").write_bytes(b"....ftypmp42")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4")
    return folder


def text(answer="x"):
    return {"question": "Q", "answer": answer}


def cell(path, content=None):
    return {"bytes": content, "path": path and str(path)}


IMAGES = {"one": Image(), "texts": List({"part": Image(), "name": Value("string")})}
KINDS = {  # features, and the value of the column by the folder of the files
    "image by path": (Image(), lambda at: cell(at / "red.png")),
    "image by relative path": (Image(), lambda at: cell("red.png")),
    "image by path from the folder above": (Image(), lambda at: cell(f"../{SECRET}/red.png")),
    "image with bytes and path": (Image(), lambda at: cell(at / "red.png", PNG)),
    "image with bytes and a path that is gone": (Image(), lambda at: cell(at / "gone.png", PNG)),
    "image with bytes and a path of Windows": (Image(), lambda at: cell(f"C:\\Users\\{SECRET}\\red.png", PNG)),
    "image with bytes and a URL": (
        Image(),
        lambda at: cell(f"https://h.example/{SECRET}/red.png?token=secretkey", PNG),
    ),
    "image with bytes": (Image(), lambda at: cell(None, PNG)),
    "image by file URL": (Image(), lambda at: cell(f"file://{at}/red.png")),
    "image not decoded": (Image(decode=False), lambda at: cell(at / "red.png")),
    "no image": (Image(), lambda at: None),
    "list of images": (List(Image()), lambda at: [cell(at / "red.png"), None, cell(None, PNG)]),
    "large list of images": (LargeList(Image()), lambda at: [cell(at / "red.png")]),
    "list of fixed length": (List(Image(), length=2), lambda at: [cell(at / "red.png"), cell(None, PNG)]),
    "struct with image": (
        {"image": Image(), "name": Value("string")},
        lambda at: {"image": cell(at / "red.png"), "name": "n"},
    ),
    "list of structs": (List({"part": Image()}), lambda at: [{"part": cell(at / "red.png")}, {"part": None}]),
    "lists in lists": (List(List(Image())), lambda at: [[cell(at / "red.png")], []]),
    "audio": (Audio(decode=False), lambda at: cell(at / "a.wav")),
    "video": (Video(decode=False), lambda at: cell(at / "a.mp4")),
    "pdf": (Pdf(decode=False), lambda at: cell(at / "a.pdf")),
    "json": (Json(), lambda at: {"a": [1, None, {"b": "red.png"}]}),
    "text": (Value("string"), lambda at: "see /usr/share/doc and red.png"),
    "numbers": (List(Value("float32")), lambda at: [1.5]),
}


def selected(kind, at, **record) -> Path:
    feature, value = KINDS[kind]
    rows = [text() | {"extra": value(at), "larf_score": i / 10, "larf_status": "ok"} for i in range(6)]
    types = {"question": Value("string"), "answer": Value("string"), "extra": feature}
    types |= {"larf_score": Value("float32"), "larf_status": Value("string")}
    dataset = from_undecoded(rows, Features(types))
    folder = at.parent / "selection"
    record["scores"] = digest_of(dataset["larf_score"])
    select(dataset, top_k=1, source="x", scored=scored_record(6, **record)).save(folder)
    return folder


def published_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a folder, those of Parquet files decompressed."""
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        values = repr(table.to_pylist()).encode("utf-8", "replace")
        found[path.name] += repr(table.schema.metadata).encode() + values
    return found


def assert_private(folder: Path, *more: str) -> None:
    names = [SECRET, str(Path.home()), str(Path.cwd()), str(Path.cwd().parent), "secretkey", *more]
    names = [name for name in names if len(name) > 1]
    if len(user := getpass.getuser()) > 4:  # a short one, such as root, is a word
        names.append(user)
    for name, content in published_bytes(folder).items():
        for private in names:
            assert not re.search(rb"(?<!\w)" + re.escape(private.encode()) + rb"(?![\w])", content), (name, private)


@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_of_any_kind_are_published_whole_and_without_paths(here, kind, monkeypatch):
    out = here.parent / "published"
    publish(selected(kind, here), out)
    assert_private(out)
    for path in here.iterdir():
        path.unlink()  # what was published needs none of them
    monkeypatch.chdir("/")
    rows = load_dataset(str(out), split="train")
    assert len(rows) == 5
    if "image" in kind and kind != "no image":
        assert b"PNG" in published_bytes(out)["train-00000-of-00001.parquet"]
    feature, _ = KINDS[kind]
    assert rows.features["extra"] == Features({"x": feature})["x"]
    first = rows[0]["extra"]
    if isinstance(feature, Image) and feature.decode and kind != "no image":
        assert first.getpixel((0, 0)) == (255, 0, 0)


def test_files_that_are_published_are_told_once(here, caplog):
    with caplog.at_level(logging.WARNING):
        publish(selected("image by path", here), here.parent / "published")
    assert caplog.text.count("files of this machine are published") == 1
    assert "5 in column extra" in caplog.text


@pytest.mark.parametrize("name", ["gone.png", "id_rsa", ".env", "passwd.txt"])
def test_media_that_are_missing_or_no_media_are_refused_by_column(here, monkeypatch, name):
    if name != "gone.png":
        (here / name).write_text("a secret of this machine")
    monkeypatch.setitem(KINDS, "odd", (List({"part": Image()}), lambda at: [{"part": cell(at / name)}]))
    with pytest.raises(InputError, match="column 'extra'") as refused:
        publish(selected("odd", here), here.parent / "published")
    assert "\n" not in str(refused.value)
    assert not (here.parent / "published").exists()


@pytest.mark.parametrize("nested", [False, True])
def test_texts_that_are_paths_of_media_of_this_machine_are_refused(here, monkeypatch, nested):
    kind = (List({"file": Value("string")}), lambda at: [{"file": f"{at}/red.png"}])
    monkeypatch.setitem(KINDS, "odd", kind if nested else (Value("string"), lambda at: f"{at}/red.png"))
    with pytest.raises(InputError, match="column 'extra' refers to files of this machine"):
        publish(selected("odd", here), here.parent / "published")


@pytest.mark.parametrize("content", [None, PNG])
def test_paths_of_media_whose_type_was_lost_are_refused_even_if_there_is_no_such_file(here, monkeypatch, content):
    stored = {"bytes": Value("binary"), "path": Value("string")}
    monkeypatch.setitem(KINDS, "odd", (List(stored), lambda at: [cell("x.png", content), cell(at / "gone", content)]))
    with pytest.raises(InputError, match="column 'extra' refers to files of this machine, such as .*gone"):
        publish(selected("odd", here), here.parent / "published")


@pytest.mark.parametrize("found", [True, False])
def test_media_by_url_are_embedded_or_refused(here, monkeypatch, found):
    if found:
        pytest.importorskip("aiohttp")  # of `datasets`, to read URLs

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(PNG)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(PNG)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{SECRET}/red.png?token=secretkey"
        monkeypatch.setitem(KINDS, "url", (Image(), lambda at: cell(url)))
        folder = selected("url", here)
        if found:
            publish(folder, here.parent / "published")
        else:
            with pytest.raises(InputError, match="cannot read the media of column 'extra'"):
                publish(folder, here.parent / "published")
        server.shutdown()
    if found:
        assert_private(here.parent / "published")
        assert load_dataset(str(here.parent / "published"), split="train")[0]["extra"].getpixel((0, 0)) == (255, 0, 0)


RECORDS = {
    "references": {"source": f"../{SECRET}/refs.jsonl", "digest": "ab", "unsafe": 5, "safe": 5, "cut": {}},
    "neutral": {"source": f"{SECRET}/neutral.csv", "digest": "cd", "rows": 8},
    "model": f"/home/x/{SECRET}/model",
    "adapter": f"./{SECRET}/adapter",
}


def test_records_name_files_and_no_folders(here):
    record = scored_record(6, source={"dataset": "rows.jsonl", "files": 1})
    record["profile"] |= RECORDS
    out = here.parent / "published"
    publish(selected("text", here, source=record["source"], profile=record["profile"]), out)
    assert_private(out)
    stage = json.loads((out / "provenance.json").read_text())["stage"]["scored"]["profile"]
    assert (stage["references"]["source"], stage["model"], stage["adapter"]) == ("refs.jsonl", "model", "adapter")


@pytest.mark.parametrize("relative", [True, False])
def test_everything_that_comes_of_relative_and_absolute_paths_is_private(here, hub, tiny_llama, relative):
    shutil.copytree(tiny_llama, here / "models" / "llama")
    (here / "refs").mkdir()
    pairs = [{"prompt": f"P{i}", "unsafe": f"Sure, {i}.", "safe": f"No, {i}.", "category": "c"} for i in range(12)]
    (here / "refs" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (here / "rows").mkdir()
    (here / "rows" / "a.jsonl").write_text("".join(json.dumps(text(f"It is {i}.")) + "\n" for i in range(8)))
    start = f"../{SECRET}/" if relative else f"{here}/"
    references = ReferenceSet.load(f"{start}refs/pairs.jsonl")
    profile = SafetyProfile.build(f"{start}models/llama", references=references, layers=[1], **PROFILE)
    scorer = LarfScorer(profile, exemplars=ExemplarIndex.build(profile, references), device="cpu")
    folder = here.parent
    score_source(open_source(f"{start}rows/a.jsonl"), scorer, folder / "scored")
    scored = Scored.load(folder / "scored")
    select(scored.rows, top_k=2, source=scored.source_id, scored=scored.manifest).save(folder / "selection")
    publish(folder / "selection", folder / "published" / "rows")
    report = folder / "published" / "report.html"
    write_report(folder / "scored", report, selection=folder / "selection", profile=profile, tokens=1)
    for name in ("scored", "selection"):
        for path in (folder / name).glob("*.json"):
            shutil.copy(path, folder / "published")
    profile.push_to_hub("org/profile", token=hub.token)
    for name, content in hub.files("org/profile", kind="model").items():
        (folder / "published" / name).write_bytes(content)
    assert_private(folder / "published", "refs/pairs", "models/llama", "rows/a")


@pytest.mark.parametrize("relative", [True, False])
def test_sources_are_described_by_the_names_of_their_files(here, relative):
    (here / "rows").mkdir()
    for name in ("rows/a.jsonl", "rows/b.jsonl"):
        (here / name).write_text(json.dumps(text()) + "\n")
    Dataset.from_list([text()]).save_to_disk(here / "saved")
    start = "" if relative else f"{here}/"
    for names in (
        "rows",
        "rows/a.jsonl",
        "rows/*.jsonl",
        "saved",
        ["rows/a.jsonl", "rows/b.jsonl"],
        "./rows",
        f"../{SECRET}/rows",
    ):
        given = [start + name for name in names] if isinstance(names, list) else start + names
        assert SECRET not in json.dumps(open_source(given).description)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b/c.png", "c.png"),
        ("c.png", "c.png"),
        ("a/b/", "b"),
        ("C:\\a\\c.png", "c.png"),
        ("https://h/a/c.png?key=x#y", "c.png"),
        ("file:///a/c%20d.png", "c d.png"),
        ("zip://in/c.png::/a/b.zip", "c.png"),
        ("hf://datasets/o/n@main/c.png", "c.png"),
    ],
)
def test_the_published_name_of_a_file(path, name):
    assert public_file_name(path) == name


@pytest.mark.parametrize("form", [" {} ", "file://{}", "\t{}\n"])
def test_paths_of_media_are_found_in_other_forms(here, monkeypatch, form):
    (here / "a b.png").write_bytes(PNG)
    path = f"{here}/a b.png".replace(" ", "%20") if form.startswith("file") else f"{here}/a b.png"
    monkeypatch.setitem(KINDS, "odd", (Value("string"), lambda at: form.format(path)))
    with pytest.raises(InputError, match="column 'extra' refers to files of this machine"):
        publish(selected("odd", here), here.parent / "published")
