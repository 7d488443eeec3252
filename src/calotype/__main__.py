"""The program: `calotype`, and `python -m calotype`."""

from __future__ import annotations

import sys

from calotype import stopping


def main() -> None:
    """Runs the command line; signals stop it from here on, while it is still being imported too."""
    try:
        with stopping.stoppable(to_the_end=True):
            from calotype.cli.main import main as command_line

            command_line()
    except KeyboardInterrupt:  # before or after what a command does
        print("calotype: Stopped.", file=sys.stderr)
        sys.exit(stopping.exit_code())


if __name__ == "__main__":
    main()
