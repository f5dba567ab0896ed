"""Ctrl-C in a command that can go on later: what stays, and how to continue."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from larf_curate.remote import public_name


class InterruptedRunError(click.ClickException):
    """A run that the user has interrupted; exit code as of a process that this signal ended."""

    exit_code = 130


@contextmanager
def resumable(kept: Callable[[], str], *, flag: str = "--resume", otherwise: str = "") -> Iterator[None]:
    """Say on Ctrl-C how to continue.

    Args:
        kept: Called on Ctrl-C for what stays, in words; nothing does if they are empty.
        flag: Option that continues, which is added to the command unless it or ``--shard`` was given; "" for none.
        otherwise: What to say if nothing stays.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not (stays := kept()):
            raise InterruptedRunError(f"interrupted; {otherwise}") from error
        arguments = [public_name(part) for part in sys.argv[1:]]
        given = {part.partition("=")[0] for part in arguments}
        arguments += [flag] if flag and not {flag, "--shard"} & given else []
        command = shlex.join(["larf-curate", *arguments])
        raise InterruptedRunError(f"interrupted; {stays}. Continue with: {command}") from error
