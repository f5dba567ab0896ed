"""Optional dependencies: import them, or fail with the pip command that installs them."""

import importlib
from types import ModuleType

from larf_curate.errors import MissingExtraError

# Both extras install a module called faiss: installed together, they overwrite each other's files.
_ALTERNATIVES = {"cpu": ' (with an NVIDIA GPU "larf-curate[gpu]" instead, never both)'}


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Dotted name to import.
        extra: The extra of this package that installs it, as in ``pip install "larf-curate[extra]"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If it is not installed; the message gives the exact pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # the module is installed, but one of its own dependencies is not: another extra would not help
        raise MissingExtraError(
            f'{module} is required but not installed: pip install "larf-curate[{extra}]"{_ALTERNATIVES.get(extra, "")}'
        ) from error
