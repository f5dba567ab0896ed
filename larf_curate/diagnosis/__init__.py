"""Diagnosis of a safety profile: what its score measures, and warnings if that is something else than safety."""

from larf_curate.diagnosis.diagnose import diagnose
from larf_curate.diagnosis.diagnosis import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
