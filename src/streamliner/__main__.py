"""`streamliner` and `python -m streamliner`."""

import signal


def run() -> None:
    """The command line, with a Ctrl-C that prints no traceback while modules load."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from streamliner.cli import main

    main()


if __name__ == "__main__":
    run()
