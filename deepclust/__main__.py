"""`python -m deepclust`: the command line, or one line that says what it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code, as `deepclust.cli.main` gives it.
    """
    try:
        from deepclust import cli
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print(
            "deepclust: error: the command needs click: pip install 'deepclust[cli]'",
            file=sys.stderr,
        )
        return 2
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
