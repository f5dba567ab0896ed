from larf_curate.progress import part_of_run, progress


def test_bars_begin_with_the_part_of_the_run_that_they_belong_to(capsys):
    with part_of_run("1/2 all"), part_of_run("safe prompts"):
        list(progress([1], label="Answering", unit="batch"))
    list(progress([1], label="Training", unit="step"))
    said = capsys.readouterr().err
    assert "1/2 all, safe prompts: Answering: 100%" in said
    assert "\rTraining: 100%" in said
