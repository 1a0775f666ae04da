"""One line of progress on a terminal, plain lines elsewhere."""

import sys


class Progress:
    """One line that is rewritten on a terminal, and lines that stay."""

    def __init__(self) -> None:
        """Write to stderr."""
        self.live = sys.stderr.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line, if this is a terminal."""
        if self.live:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._shown = True

    def say(self, text: str) -> None:
        """Write a line that stays."""
        sys.stderr.write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")
        sys.stderr.flush()
        self._shown = False

    def leave(self) -> None:
        """Let what is shown stay, and go on below it."""
        if self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._shown = False
