"""The terminal: results go to standard output, everything else to standard error.

With `--json` standard output has one JSON value a line, as the servers gave it, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from twisted.internet.interfaces import IReactorTime

from securifile.client.errors import ClientError
from securifile.client.local_files import Progress
from securifile.client.status import bytes_text, printable

_REDRAW_S = 0.2
"""Between two drawings of the progress line: what an eye can follow."""


class Console:
    """Where the command reads and writes.

    Args:
        stdin, stdout, stderr: text streams over binary ones.
        as_json: whether results are wanted as JSON.
        ask: shows a prompt and returns a secret that was typed, unseen; raises `EOFError`.
        clock: for the speed of a transfer.
    """

    def __init__(
        self, stdin: TextIO, stdout: TextIO, stderr: TextIO, *, as_json: bool, ask: Callable[[str], str], clock: IReactorTime
    ) -> None:
        self.as_json = as_json
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._ask = ask
        self._clock = clock
        self._line_width = 0

    @property
    def binary_in(self) -> BinaryIO:
        """Standard input as bytes."""
        return self._stdin.buffer

    @property
    def binary_out(self) -> BinaryIO:
        """Standard output as bytes."""
        self._stdout.flush()
        return self._stdout.buffer

    def result(self, value: Any, text: Callable[[], str]) -> None:
        """What was asked for: the value as JSON, or its text."""
        if self.as_json:
            self._stdout.write(json.dumps(value) + "\n")
        else:
            self._stdout.write(text())
        self._stdout.flush()

    def done(self, value: Any, sentence: str) -> None:
        """What was done: its answer as JSON, or a sentence."""
        self.result(value, lambda: printable(sentence) + "\n")

    def note(self, text: str) -> None:
        """Something to know that is not a result: errors and warnings."""
        self.clear_line()
        self._stderr.write(f"securifile: {printable(text)}\n")
        self._stderr.flush()

    def secret(self, prompt: str) -> str:
        """Ask for a secret at the terminal. Raises `ClientError` when there is nobody to ask."""
        try:
            return self._ask(prompt)
        except EOFError:
            raise ClientError("There is no terminal to ask for the password; use --password-file FILE or --password-stdin.") from None

    def line(self) -> str:
        """A line of standard input, for a secret. Raises `ClientError` when there is none."""
        line = self._stdin.readline()
        if not line:
            raise ClientError("Standard input ended before the password was read.")
        return line.rstrip("\r\n")

    def progress(self, label: str) -> Progress:
        """What to tell of a transfer's progress: draws a line, if standard error is a terminal."""
        if self.as_json or not self._stderr.isatty():
            return lambda done, total: None
        begun = drawn = self._clock.seconds()

        def draw(done: int, total: int) -> None:
            nonlocal drawn
            now = self._clock.seconds()
            if now - drawn < _REDRAW_S:
                return
            drawn = now
            speed = done / (now - begun) if now > begun else 0.0
            share = f"{100 * done // total:3d} %  " if total else ""
            self._draw(f"{share}{bytes_text(done)} of {bytes_text(total)}  {bytes_text(speed)}/s  {printable(label)}")

        return draw

    def _draw(self, line: str) -> None:
        line = line[:120]
        self._stderr.write("\r" + line.ljust(self._line_width))
        self._stderr.flush()
        self._line_width = len(line)

    def clear_line(self) -> None:
        """Take the progress line away."""
        if self._line_width:
            self._stderr.write("\r" + " " * self._line_width + "\r")
            self._stderr.flush()
            self._line_width = 0
