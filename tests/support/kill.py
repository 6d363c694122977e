"""Start the command line in processes that can be killed at any moment.

They are forked from a server that has imported everything, which saves each of them some seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch

from streamliner.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("kill", "accelerate", "tokenizers", "transformers.models.llama.modeling_llama"),
        *("streamliner.verbs.prune", "streamliner.verbs.heal"),
    ]
)


def start(*arguments):
    """`streamliner` with these arguments, on one thread."""
    process = SERVER.Process(target=_streamliner, args=([str(argument) for argument in arguments],))
    process.start()
    return process


def finish(*arguments):
    """Run to the end."""
    process = start(*arguments)
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


def _streamliner(arguments):
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        main(arguments)
