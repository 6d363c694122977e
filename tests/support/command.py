"""Call the command line in this process, or start it under a launcher."""

from __future__ import annotations

from streamliner.cli import main

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(capsys, *arguments, status=0):
    try:
        main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    captured = capsys.readouterr()
    assert code == status, captured.out + captured.err
    return captured.out, captured.err
