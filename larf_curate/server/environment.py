"""The virtual environment of the Argilla server, which pins older versions of libraries than this package needs."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from larf_curate.errors import ReviewServerError
from larf_curate.files import cache_home
from larf_curate.server.locks import locked

SERVER_VERSION = "2.8.0"
_FOLDER = Path(__file__).parent
_REQUIREMENTS = _FOLDER / "requirements.txt"
_LOCK = _FOLDER / "requirements.lock"
_SUPPORTED_PYTHONS = [(3, minor) for minor in range(11, 14)]  # pydantic 2.9 has no wheels for 3.14
_INSTALL_TIMEOUT = 1800.0  # seconds


@dataclass(frozen=True)
class ServerEnvironment:
    """A virtual environment with the pinned requirements of the server, installed or not.

    The name of its folder contains the server's version, Python's version and a digest of the requirements, so that
    an upgrade installs a new environment. A marker file is written last: a folder without it is left over from an
    interrupted installation.

    Args:
        path: Folder of the environment.
        base: Python interpreter that the environment is created with.
    """

    path: Path
    base: Path

    @classmethod
    def find(cls, folder: str | Path | None = None) -> "ServerEnvironment":
        """Return the environment for this version of the package, without installing it.

        Args:
            folder: Parent folder (default: ``argilla-server`` in the cache folder).

        Raises:
            ReviewServerError: If no Python from 3.11 to 3.13 is found.
        """
        base, version = _base_python()
        pins = _REQUIREMENTS.read_bytes() + _LOCK.read_bytes() + f"{base} {platform.machine()}".encode()
        name = f"{SERVER_VERSION}-py{version}-{hashlib.sha256(pins).hexdigest()[:10]}"
        root = Path(folder).expanduser().absolute() if folder is not None else cache_home() / "argilla-server"
        return cls(root / name, base)

    @property
    def python(self) -> Path:
        """Python interpreter of the environment."""
        return self.path / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether the installation was completed and the interpreter that it links to still exists."""
        return self._marker.exists() and self.python.exists()

    @property
    def _marker(self) -> Path:
        return self.path / "installed.json"

    def ensure(self, say: Callable[[str], None]) -> Path:
        """Install the environment unless it is installed.

        Args:
            say: Called with each line of progress.

        Returns:
            Python interpreter of the environment.

        Raises:
            ReviewServerError: If the installation fails.
        """
        if self.installed:
            return self.python
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock"), timeout=_INSTALL_TIMEOUT):
            if not self.installed:  # another process may have installed it while we waited for the lock
                self._install(say)
        return self.python

    def _install(self, say: Callable[[str], None]) -> None:
        say(f"installing Argilla {SERVER_VERSION} in {self.path} (once; about 600 MB, one or two minutes)")
        shutil.rmtree(self.path, ignore_errors=True)
        _run([str(self.base), "-m", "venv", str(self.path)], "make a virtual environment")
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:", "--no-compile"]
        # A file with another digest is not installed. Without dependencies: the lock has all packages, some of them in
        # later versions than argilla-server declares, because of advisories.
        pins = ["--require-hashes", "--no-deps", "-r", str(_LOCK)]
        _run([str(self.python), "-m", "pip", "install", *options, *pins], f"install argilla-server {SERVER_VERSION}")
        temporary = self._marker.with_suffix(".tmp")
        temporary.write_text(json.dumps({"argilla-server": SERVER_VERSION, "python": str(self.base)}), encoding="utf-8")
        os.replace(temporary, self._marker)
        say("installed")
        # Not removed: another installation of this package may use it.
        for other in self._other_environments():
            say(f"you can remove the environment of another version, unless another installation uses it: {other}")

    def _other_environments(self) -> list[Path]:
        """Folders of installed environments of other versions beside this one."""
        return sorted(
            marker.parent for marker in self.path.parent.glob(f"*/{self._marker.name}") if marker != self._marker
        )

    def versions(self) -> dict[str, tuple[str, str | None]]:
        """Pinned and installed version of each package in ``requirements.txt``; None if it is not installed."""
        pinned = dict(line.split("==") for line in _requirement_lines())
        code = (
            "import json, sys\nfrom importlib.metadata import distributions\n"
            "found = {d.metadata['Name'].lower(): d.version for d in distributions()}\n"
            "print(json.dumps({n: found.get(n) for n in sys.argv[1:]}))"
        )
        found = json.loads(_run([str(self.python), "-I", "-c", code, *pinned], "read the installed versions"))
        return {name: (version, found[name]) for name, version in pinned.items()}


def _requirement_lines() -> list[str]:
    """The requirements without comments and empty lines."""
    lines = (line.split("#")[0].strip() for line in _REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _base_python() -> tuple[Path, str]:
    """Path and version of this interpreter if the server supports it, else of the newest supported one on the PATH."""
    if sys.version_info[:2] in _SUPPORTED_PYTHONS:
        return Path(os.path.realpath(sys.executable)), f"{sys.version_info[0]}.{sys.version_info[1]}"
    for major, minor in reversed(_SUPPORTED_PYTHONS):
        if found := shutil.which(f"python{major}.{minor}"):
            return Path(os.path.realpath(found)), f"{major}.{minor}"
    raise ReviewServerError(
        f"Argilla {SERVER_VERSION} requires Python 3.11 to 3.13, got {platform.python_version()}: "
        "install python3.13 beside it, or use your own server with --url"
    )


def _run(command: list[str], action: str) -> str:
    """Run a command and return its output.

    Args:
        command: Program and arguments.
        action: What it does, for the error message.

    Raises:
        ReviewServerError: If it exits with an error.
    """
    # PYTHONPATH would let packages of our environment shadow those of the server's.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode != 0:
        last = (process.stderr.strip() or process.stdout.strip() or "no output").splitlines()[-1]
        raise ReviewServerError(f"could not {action} ({last}): check the network and the disk, then try again")
    return process.stdout
