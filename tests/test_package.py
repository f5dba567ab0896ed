import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import larf_curate
from larf_curate import errors, extras


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_does_not_import_torch_or_any_other_heavy_library():
    heavy = {"torch", "transformers", "datasets", "numpy", "argilla", "faiss", "sklearn"}
    code = f"import sys, larf_curate; dir(larf_curate); print(sorted({heavy} & set(sys.modules)))"
    assert python(code) == "[]"


EXPORTS = {
    "larf_curate": [
        "ExemplarIndex",
        "LarfScorer",
        "LayerReport",
        "ReferenceSet",
        "SafetyProfile",
        "Selection",
        "find_safety_layers",
        "select",
    ],
    "larf_curate.diagnosis": ["Diagnosis", "diagnose"],
    "larf_curate.layers": ["Agreement", "LayerReport", "find_safety_layers"],
    "larf_curate.profile": [
        "CONFIG_FILE",
        "SIDES",
        "STATES_FILE",
        "Rows",
        "SafetyProfile",
        "cache_profile",
        "check_drift",
        "find_rows",
        "neutral_digest",
        "read_sides",
        "read_states",
        "rows_by_side",
    ],
    "larf_curate.publish": ["Publication", "PublishedFile", "RowDiff", "publish"],
    "larf_curate.report": ["write_comparison", "write_report"],
    "larf_curate.review": [
        "Assignment",
        "Conflicts",
        "Decision",
        "Decisions",
        "Exported",
        "HarmPush",
        "Left",
        "Outcome",
        "PeopleLinks",
        "Proposals",
        "PushResult",
        "QueueStatus",
        "QueueSummary",
        "Reranked",
        "ReviewQueue",
        "SentConflicts",
        "TaughtProfile",
        "add_decisions",
        "export_review",
        "import_decisions",
        "write_review_page",
    ],
    "larf_curate.server": [
        "DEFAULT_PORT",
        "WORKSPACE",
        "Account",
        "Check",
        "Credentials",
        "EmbeddedServer",
        "ServerStatus",
    ],
    "larf_curate.signals": ["AXES", "DEFAULT_SIGNAL", "SIGNALS", "ReferenceStates", "Signal", "SignalKind"],
    "larf_curate.training": [
        "Experiment",
        "RefusalReport",
        "SapConfig",
        "SapTrainer",
        "compare_refusals",
        "evaluate_refusals",
        "sap_lora",
        "training_rows",
    ],
}
"""All public names; a change here is a change for users."""


@pytest.mark.parametrize("package", EXPORTS)
def test_the_public_names_are_exactly_these(package):
    assert importlib.import_module(package).__all__ == EXPORTS[package]


@pytest.mark.parametrize("package", EXPORTS)
def test_every_public_name_loads_and_says_what_it_is(package):
    for name in EXPORTS[package]:
        found = getattr(importlib.import_module(package), name)
        if not isinstance(found, type | FunctionType):
            continue  # a constant, or a name of a type
        assert found.__name__ == name
        assert found.__module__.startswith("larf_curate.")
        written = found.__doc__ or ""
        assert written.strip(), name
        assert not written.startswith(f"{name}("), f"{name} has only what dataclasses write"


def test_the_public_names_of_the_package_are_listed_before_they_are_loaded():
    assert set(EXPORTS["larf_curate"]) <= set(dir(larf_curate))


def public_definitions():
    """Functions, classes and their methods whose names have no underscore, as (where, its docstring)."""
    root = Path(larf_curate.__file__).parent
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root)
        if module.parts[:2] == ("server", "inside"):  # runs in the environment of the server
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield str(module), ast.get_docstring(tree)
        yield from definitions_of(tree, str(module))


def definitions_of(scope, where):
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{where}:{node.name}", ast.get_docstring(node)
            if isinstance(node, ast.ClassDef):
                yield from definitions_of(node, f"{where}:{node.name}")


def test_every_public_module_function_class_and_method_has_a_docstring():
    found = dict(public_definitions())
    assert "scoring/scorer.py:LarfScorer:score" in found
    assert [where for where, docstring in found.items() if not docstring] == []


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
