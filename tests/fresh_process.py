"""Processes that start at once with everything imported, forked from an idle server, for tests that kill them."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["larf_curate.scored", "larf_curate.scorer", "transformers.models.llama.modeling_llama"])


def start(function: Callable[..., Any], *arguments: Any, log: Path) -> multiprocessing.process.BaseProcess:
    """Call a function of a module in a process of its own; what it prints goes to the end of a file."""
    process = CONTEXT.Process(target=_call, args=(function, arguments, log))
    process.start()
    return process


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    function(*arguments)
