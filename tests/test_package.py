import subprocess
import sys

import pytest

import larf_curate
from larf_curate import errors, extras


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_does_not_import_torch_or_any_other_heavy_library():
    heavy = {"torch", "transformers", "datasets", "numpy", "argilla", "faiss", "sklearn"}
    code = f"import sys, larf_curate; dir(larf_curate); print(sorted({heavy} & set(sys.modules)))"
    assert python(code) == "[]"


def test_every_public_name_loads_and_knows_where_it_lives():
    for name in larf_curate.__all__:
        assert getattr(larf_curate, name).__name__ == name
        assert getattr(larf_curate, name).__module__.startswith("larf_curate.")


def test_the_public_names_are_exactly_the_documented_ones():
    assert larf_curate.__all__ == [
        "ExemplarIndex",
        "LarfScorer",
        "LayerReport",
        "ReferenceSet",
        "SafetyProfile",
        "Selection",
        "find_safety_layers",
        "select",
    ]
    assert set(larf_curate.__all__) == set(larf_curate._HOMES)
    assert set(larf_curate.__all__) <= set(dir(larf_curate))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        larf_curate.nonsense  # noqa: B018


def test_a_missing_library_names_the_pip_command_of_its_extra():
    with pytest.raises(errors.MissingExtraError) as error:
        extras.require("no_such_library.part", extra="train")
    assert 'pip install "larf-curate[train]"' in str(error.value)
    assert isinstance(error.value, ImportError)


def test_a_missing_faiss_offers_the_build_for_gpus_as_the_alternative(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(errors.MissingExtraError) as error:
        extras.require("faiss", extra="cpu")
    assert 'pip install "larf-curate[cpu]"' in str(error.value)
    assert 'larf-curate[gpu]"' in str(error.value)


def test_an_installed_library_that_fails_on_another_import_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import something_else_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_else_missing") as error:
        extras.require("half_installed", extra="train")
    assert not isinstance(error.value, errors.MissingExtraError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("InputError", ValueError),
        ("ConversationError", ValueError),
        ("ReferenceSetError", ValueError),
        ("ProfileError", ValueError),
        ("ProfileMismatchError", errors.ProfileError),
        ("ModelError", ValueError),
        ("ScoringError", RuntimeError),
        ("MissingExtraError", ImportError),
        ("ReviewError", RuntimeError),
        ("ReviewServerError", errors.ReviewError),
        ("PublishError", RuntimeError),
        ("TrainingError", RuntimeError),
    ],
)
def test_every_error_is_ours_and_the_builtin_a_caller_expects(error, builtin):
    assert issubclass(getattr(errors, error), errors.LarfCurateError)
    assert issubclass(getattr(errors, error), builtin)
