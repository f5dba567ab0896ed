"""Optional dependencies: one sentence that says which pip command brings them."""

import importlib
from types import ModuleType

from larf_curate.errors import MissingExtraError

OTHERWISE = {"cpu": ' (with an NVIDIA GPU "larf-curate[gpu]" instead, never both)'}


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Dotted name to import.
        extra: The extra of this package that brings it, as in ``pip install "larf-curate[extra]"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If it is not installed; the message holds the exact pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f'{module} is needed here and not installed: pip install "larf-curate[{extra}]"{OTHERWISE.get(extra, "")}'
        ) from error
