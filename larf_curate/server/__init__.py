"""The embedded Argilla server: ``EmbeddedServer`` installs, starts, stops and diagnoses it."""

from larf_curate.server.credentials import WORKSPACE, Account, Credentials
from larf_curate.server.doctor import Check
from larf_curate.server.embedded import DEFAULT_PORT, EmbeddedServer, ServerStatus

__all__ = ["DEFAULT_PORT", "WORKSPACE", "Account", "Check", "Credentials", "EmbeddedServer", "ServerStatus"]
