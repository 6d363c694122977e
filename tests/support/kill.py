"""Start the command line in processes of its own, which can be killed at any moment.

They are forked from a server that has imported everything, which saves each of them ten seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from streamliner.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("kill", "accelerate", "tokenizers", "transformers.models.llama.modeling_llama"),
        *("streamliner.verbs.prune", "streamliner.verbs.heal", "streamliner.verbs.evaluate"),
    ]
)


def start(*arguments, folder=None, changed=None, **environment):
    """`streamliner` with these arguments, on one thread.

    Args:
        folder: gets the files `out` and `err` with what it prints.
        changed: (module, name) -> the value that the name has there.
        environment: more variables.
    """
    values = ([str(argument) for argument in arguments], folder, changed or {}, environment)
    process = SERVER.Process(target=_streamliner, args=values)
    process.start()
    return process


@dataclass(frozen=True)
class Pair:
    """Two processes of one run, with the environment that torchrun gives them."""

    processes: tuple[Any, Any]
    folders: tuple[Path, Path]

    def wait(self):
        """Run to the end; the greater exit status, and what both printed to stdout and to stderr."""
        for process in self.processes:
            process.join(300)
        status = max((process.exitcode for process in self.processes), key=abs)
        return status, *("".join((folder / name).read_text() for folder in self.folders) for name in ("out", "err"))

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()


def start_pair(folder, *arguments, changed=None):
    """`streamliner` in two processes as under torchrun; what they print goes below `folder`."""
    return _pair(folder, lambda each, rank: start(*arguments, folder=each, changed=changed, **rank))


def start_both(folder, function):
    """`function`, of a module that can be imported, in two such processes."""

    def begin(each, rank):
        process = SERVER.Process(target=_call, args=(function, each, rank))
        process.start()
        return process

    return _pair(folder, begin)


def _pair(folder, begin):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    folders = (folder / "rank-0", folder / "rank-1")
    started = []
    for rank, each in enumerate(folders):
        each.mkdir(parents=True)
        started.append(begin(each, where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
    return Pair(tuple(started), folders)


def finish(*arguments, **environment):
    """Run to the end."""
    process = start(*arguments, **environment)
    process.join(300)
    assert process.exitcode == 0


def kill_when(happened, delay, *arguments):
    """SIGKILL once `happened()` and `delay` more seconds have passed. Whether it was still running then."""
    process = start(*arguments)
    while process.is_alive() and not happened():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def contents(folder):
    """The bytes of each file in a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def count_lines(file):
    """The whole lines in a file, which may not exist."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _streamliner(arguments, folder, changed, environment):
    sys.argv = ["streamliner", *arguments]  # a run records its command
    for (module, name), value in changed.items():
        setattr(import_module(module), name, value)
    _call(partial(main, arguments), folder, environment)


def _call(function, folder, environment):
    os.environ |= environment
    torch.set_num_threads(1)
    for name, stream in (("out", 1), ("err", 2)):
        if folder or name == "out":
            file = os.open(folder / name if folder else os.devnull, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, stream)
    function()
