"""The one error a user's mistake raises, and how the commands show it."""

from __future__ import annotations

import argparse
import difflib
import sys
import unicodedata
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """A caller's mistake. Its message is one line: what, where, and what to do about it."""


class Stopped(Exception):
    """A command ends early, and not by a caller's mistake.

    Attributes:
      code: exit code of the command.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def seed(text: str) -> int:
    """A seed as a user types it: 0 to 2^32 - 1 (JAX takes others, but modulo 2^32).

    Raises:
      argparse.ArgumentTypeError: anything else.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: give a whole number from 0 to "
                                         f"{2**32 - 1}")
    return number


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like another; None if none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return near[0] if near else None


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones, with the nearest of them.

    Args:
      what: the kind of thing, e.g. "method".
      name: what the caller wrote.
      known: every accepted name.
    """
    known = sorted(known)
    near = nearest(name, known)
    hint = f' Did you mean "{near}"?' if near else ""
    return InputError(f'unknown {what} "{name}".{hint} Known: {", ".join(known) or "none"}')


def line(text: str) -> str:
    """A text to be shown as one line: what controls a terminal, or is no text, is escaped.

    Names of files may have both.
    """
    return "".join(character.encode("unicode_escape").decode()
                   if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character
                   for character in text)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command's `main(argv)`: a user's mistake is one line on stderr and exit code 2."""
    try:
        code = main(sys.argv)
    except InputError as error:
        print(line(f"error: {error}"), file=sys.stderr)
        code = 2
    except Stopped as stopped:
        print(line(f"stopped: {stopped}"), file=sys.stderr)
        code = stopped.code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)
