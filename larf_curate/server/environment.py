"""The virtual environment the Argilla server runs in: it pins libraries this package needs newer."""

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
_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "requirements.txt"
_CONSTRAINTS = _HERE / "constraints.txt"
_SUPPORTED = [(3, minor) for minor in range(10, 14)]
_BUILD_TIMEOUT = 1800.0


@dataclass(frozen=True)
class ServerEnvironment:
    """One virtual environment, whole or not there.

    The folder's name holds the server's version, Python's, and a digest of the requirements, so that an upgrade makes
    a new one. A marker file is written last: without it the folder is the rest of an interrupted install.

    Args:
        path: The folder of the environment.
        base: The Python interpreter it is made from.
    """

    path: Path
    base: Path

    @classmethod
    def find(cls, folder: str | Path | None = None) -> "ServerEnvironment":
        """The environment for this version, under ``folder`` (default: ``argilla-server`` in the cache folder).

        Raises:
            ReviewServerError: If no Python from 3.10 to 3.13 is found.
        """
        base, version = _base_python()
        pins = _REQUIREMENTS.read_bytes() + _CONSTRAINTS.read_bytes() + f"{base} {platform.machine()}".encode()
        name = f"{SERVER_VERSION}-py{version}-{hashlib.sha256(pins).hexdigest()[:10]}"
        root = Path(folder).expanduser().absolute() if folder is not None else cache_home() / "argilla-server"
        return cls(root / name, base)

    @property
    def python(self) -> Path:
        """The interpreter inside the environment."""
        return self.path / "bin" / "python"

    @property
    def whole(self) -> bool:
        """Whether the environment was installed to the end and its interpreter still starts."""
        return self._marker.exists() and self.python.exists()

    @property
    def _marker(self) -> Path:
        return self.path / "installed.json"

    def ensure(self, say: Callable[[str], None]) -> Path:
        """Install the environment unless it is whole.

        Args:
            say: Is told what happens, one line at a time.

        Returns:
            The interpreter inside.

        Raises:
            ReviewServerError: If the install fails.
        """
        if self.whole:
            return self.python
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock"), timeout=_BUILD_TIMEOUT):
            if not self.whole:
                self._build(say)
        return self.python

    def _build(self, say: Callable[[str], None]) -> None:
        say(f"installing Argilla {SERVER_VERSION} once, about 600 MB in {self.path} (a minute or two)")
        shutil.rmtree(self.path, ignore_errors=True)
        _run([str(self.base), "-m", "venv", str(self.path)], "make a virtual environment")
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:", "--no-compile"]
        pins = ["-r", str(_REQUIREMENTS), "-c", str(_CONSTRAINTS)]
        _run([str(self.python), "-m", "pip", "install", *options, *pins], f"install argilla-server {SERVER_VERSION}")
        aside = self._marker.with_suffix(".tmp")
        aside.write_text(json.dumps({"argilla-server": SERVER_VERSION, "python": str(self.base)}), encoding="utf-8")
        os.replace(aside, self._marker)
        say("installed")
        for older in self._older():
            say(f"an older environment is not needed any more, unless another installation uses it: {older}")

    def _older(self) -> list[Path]:
        """Whole environments beside this one, of other versions."""
        return sorted(
            marker.parent for marker in self.path.parent.glob(f"*/{self._marker.name}") if marker != self._marker
        )

    def versions(self) -> dict[str, tuple[str, str | None]]:
        """Wanted and installed version of each package in ``requirements.txt``; None is not installed."""
        wanted = dict(line.split("==") for line in _requirement_lines())
        code = (
            "import json, sys\nfrom importlib.metadata import distributions\n"
            "have = {d.metadata['Name'].lower(): d.version for d in distributions()}\n"
            "print(json.dumps({n: have.get(n) for n in sys.argv[1:]}))"
        )
        have = json.loads(_run([str(self.python), "-I", "-c", code, *wanted], "read the installed versions"))
        return {name: (version, have[name]) for name, version in wanted.items()}


def _requirement_lines() -> list[str]:
    lines = (line.split("#")[0].strip() for line in _REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _base_python() -> tuple[Path, str]:
    """This interpreter if the server supports it, else one on the path: pydantic 2.9 has no wheels past 3.13."""
    if sys.version_info[:2] in _SUPPORTED:
        return Path(os.path.realpath(sys.executable)), f"{sys.version_info[0]}.{sys.version_info[1]}"
    for major, minor in reversed(_SUPPORTED):
        if found := shutil.which(f"python{major}.{minor}"):
            return Path(os.path.realpath(found)), f"{major}.{minor}"
    raise ReviewServerError(
        f"Argilla {SERVER_VERSION} wants Python 3.10 to 3.13, this is {platform.python_version()}: "
        "install python3.13 beside it, or use a server of your own with --url"
    )


def _run(command: list[str], doing: str) -> str:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ReviewServerError(f"could not {doing} ({last}): check the network and the disk, then try again")
    return done.stdout
