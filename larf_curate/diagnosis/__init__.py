"""What a profile's score means, and warnings where it means something else than safety."""

from larf_curate.diagnosis.diagnose import diagnose
from larf_curate.diagnosis.diagnosis import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
