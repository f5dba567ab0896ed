from larf_curate.progress import part_of_run, progress


def test_bars_begin_with_the_part_of_the_run_that_they_belong_to(capsys):
    with part_of_run("1/2 all"), part_of_run("safe prompts"):
        list(progress([1], label="Answering", unit="prompt"))
    list(progress([1], label="Training", unit="step"))
    said = capsys.readouterr().err
    assert "1/2 all, safe prompts: Answering: 100%" in said
    assert "\rTraining: 100%" in said


def test_a_long_label_leaves_room_for_the_figures(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with part_of_run("1/2 kept:larf_score+sft seed 0"), part_of_run("harmful prompts"):
        list(progress([1, 2], label="Answering", unit="prompt"))
    last = capsys.readouterr().err.split("\r")[-1].strip()
    assert last.startswith("1/2 kept:larf_score+sft seed 0, harmful prompts: Answering: 2/2 [00:00<00:00")
    assert len(last) <= 80
