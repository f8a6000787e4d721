"""Uploads stay in memory, and in bounds.

waitress writes bodies above half a megabyte to temporary files, and ends a connection in the
middle of a body that is too large, so that its client sees a broken connection and no answer. Here
a body is kept in memory; one for which there is no room is received and dropped, and the
application, which is told, answers.
"""

from __future__ import annotations

import io
import threading

from waitress import channel, parser


class Room:
    """Bytes that the bodies of all connections may hold together.

    Attributes:
      each: most bytes of one body.
    """

    def __init__(self, each: int, together: int):
        self.each = each
        self._left = together
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Takes `count` bytes, or none if there are not so many."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        """Gives `count` bytes back."""
        with self._lock:
            self._left += count


class Memory(io.BytesIO):
    """A body.

    Attributes:
      dropped: "" for a whole one, else why it is empty: "large" (more bytes than one body may
        have) or "crowded" (too many with those of others).
    """

    dropped = ""


class _Body:
    """Takes a body in; what waitress asks of a buffer."""

    def __init__(self, room: Room):
        self._room = room
        self._file = Memory()
        self._length = 0
        self._held = 0

    def __len__(self) -> int:
        return self._length  # of what was sent: waitress makes a chunked body's length of it

    def append(self, data: bytes) -> None:
        self._length += len(data)
        if self._file.dropped or self._file.closed:
            return
        if self._length > self._room.each:
            self._drop("large")
        elif not self._room.take(len(data)):
            self._drop("crowded")
        else:
            self._held += len(data)
            self._file.write(data)

    def _drop(self, why: str) -> None:
        self.close()
        self._file = Memory()
        self._file.dropped = why

    def getfile(self) -> Memory:
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        self._file.close()
        self._room.give(self._held)
        self._held = 0


def channel_class(room: Room) -> type[channel.HTTPChannel]:
    """The class of waitress's connections whose bodies share `room`."""

    class Parser(parser.HTTPRequestParser):
        """Reads a request."""

        def parse_header(self, header_plus):
            super().parse_header(header_plus)
            if self.body_rcv is not None:
                self.body_rcv.buf = _Body(room)

    class Channel(channel.HTTPChannel):
        """A connection."""

        parser_class = Parser

        def handle_close(self):
            super().handle_close()
            if self.request is not None:  # its client went in the middle of a body
                self.request.close()

    return Channel
