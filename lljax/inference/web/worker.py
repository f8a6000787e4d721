"""One thread that runs the models, for the many threads that answer requests.

What is in memory is bounded: so many requests are taken in at all, and the pictures that are
decoded at one time hold so many pixels. Pictures of one size that wait for the same settings are
run as one batch.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lljax.inference.control import Control, mix
from lljax.inference.enhancer import Enhancer

_BATCH = 8  # pictures run together
_BATCH_PIXELS = 8_000_000  # of a batch: larger pictures fill a device alone, and would wait for
# one another
_POLL = 0.25  # seconds between looks at whether a waiting client is still there


class Full(Exception):
    """No place is free.

    Attributes:
      seconds: after which one should be, a whole number from 1.
    """

    def __init__(self, seconds: int):
        super().__init__(f"all places are taken for about {seconds} s")
        self.seconds = seconds


class Late(Exception):
    """The result was not ready in time."""


class Gone(Exception):
    """The client has given up."""


class Ended(Exception):
    """The worker has been closed."""


class Ticket:
    """A request's place; see `Worker.place`."""

    def __init__(self, worker: Worker, deadline: float, gone: Callable[[], bool]):
        self._worker = worker
        self.deadline = deadline
        self.gone = gone
        self.room = 0
        self.job: tuple | None = None  # model, pixels, strength, maps
        self.answer: tuple[np.ndarray, dict[str, np.ndarray]] | Exception | None = None

    def check(self) -> None:
        """Raises what ends the request before its result is there.

        Raises:
          Late: its time is over.
          Gone: its client is.
        """
        if self.gone():
            raise Gone
        if time.monotonic() >= self.deadline:
            raise Late

    def make_room(self, pixels: int) -> None:
        """Waits until a picture of so many pixels may be decoded; first come, first served.

        Args:
          pixels: height x width.

        Raises:
          Late, Gone: as `check`.
          Ended: the worker is closed before there is room.
        """
        self._worker.make_room(self, pixels)

    def run(self, model: str, pixels: np.ndarray, strength: float = 1.0,
            maps: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Waits for the picture, enhanced.

        Args:
          model: a key of the worker's enhancers.
          pixels: uint8 or uint16 [H, W, 3].
          strength: share of the change that is kept, 0 to 1.
          maps: whether to draw the maps as well.

        Returns:
          (pixels, drawings): as `Enhancer.draw`; no drawings unless asked for.

        Raises:
          Late, Gone: as `check`; it is not computed then, unless it was begun.
          Ended: the worker is closed before the result is there.
          Exception: whatever went wrong in the model.
        """
        self.job = (model, pixels, strength, maps)
        return self._worker.run(self)


class Worker:
    """The thread and what waits for it.

    Attributes:
      places: requests that are taken in at one time.
    """

    def __init__(self, enhancers: Mapping[str, Enhancer], places: int, room: int, timeout: float):
        """Starts the thread.

        Args:
          enhancers: by the models' names.
          places: requests taken in at one time, waiting and running.
          room: pixels of the pictures decoded at one time; no picture may have more.
          timeout: seconds that a request may take.
        """
        self.places = places
        self._enhancers = enhancers
        self._room, self._timeout = room, timeout
        self._changed = threading.Condition()
        self._inside = 0
        self._asking: deque[Ticket] = deque()
        self._jobs: deque[Ticket] = deque()
        self._seconds = 0.0  # that a picture took, a running mean
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="lljax-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def inside(self) -> int:
        """Requests that have a place."""
        return self._inside

    def close(self, timeout: float = 5) -> None:
        """Ends the thread, after the batch that it runs; sends away what waits.

        Args:
          timeout: seconds to wait for the thread.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    @contextlib.contextmanager
    def place(self, gone: Callable[[], bool]) -> Iterator[Ticket]:
        """A place, kept until the block ends.

        Args:
          gone: tells whether the client has given up.

        Raises:
          Full: there is none.
        """
        with self._changed:
            if self._inside >= self.places:
                # When half of them are done: all who are told to come back find a place then.
                raise Full(max(1, math.ceil(self._seconds * self._inside / 2)))
            self._inside += 1
        ticket = Ticket(self, time.monotonic() + self._timeout, gone)
        try:
            yield ticket
        finally:
            with self._changed:
                self._inside -= 1
                self._room += ticket.room
                self._changed.notify_all()

    def make_room(self, ticket: Ticket, pixels: int) -> None:
        """As `Ticket.make_room`."""
        with self._changed:
            self._asking.append(ticket)
            try:
                self._wait(ticket, lambda: self._asking[0] is ticket and self._room >= pixels)
                self._room -= pixels
                ticket.room = pixels
            finally:
                self._asking.remove(ticket)
                self._changed.notify_all()

    def run(self, ticket: Ticket) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `Ticket.run`."""
        with self._changed:
            self._jobs.append(ticket)
            self._changed.notify_all()
            try:
                self._wait(ticket, lambda: ticket.answer is not None)
            finally:
                if ticket in self._jobs:
                    self._jobs.remove(ticket)
        if isinstance(ticket.answer, Exception):
            raise ticket.answer
        return ticket.answer

    def _wait(self, ticket: Ticket, ready: Callable[[], bool]) -> None:
        """Waits, `_changed` held."""
        while not self._changed.wait_for(lambda: self._closed or ready(),
                                         min(_POLL, self._timeout)):
            ticket.check()
        if not ready():
            raise Ended

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._jobs)
                if self._closed:
                    return
                batch = self._take()
            start = time.monotonic()
            answers = self._answers([ticket.job for ticket in batch]) if batch else []
            with self._changed:
                for ticket, answer in zip(batch, answers, strict=True):
                    ticket.answer = answer
                    each = (time.monotonic() - start) / len(batch)
                    self._seconds += (each - self._seconds) / 5
                self._changed.notify_all()

    def _take(self) -> list[Ticket]:
        """The first job, and those behind it that can run with it; none that nobody waits for."""
        batch: list[Ticket] = []
        for ticket in list(self._jobs):
            alike = not batch or _key(ticket.job) == _key(batch[0].job) is not None
            pixels = ticket.job[1].size // 3
            if not alike or (batch and (len(batch) + 1) * pixels > _BATCH_PIXELS):
                continue
            self._jobs.remove(ticket)
            try:
                ticket.check()
            except (Late, Gone):  # its own thread sees it too, and ends it
                continue
            batch.append(ticket)
            if len(batch) == _BATCH:
                break
        return batch

    def _answers(self, jobs: list[tuple]) -> list:
        """What `_compute` gives for each job, or what it raised."""
        try:
            return self._compute(jobs)
        except Exception as error:  # the thread that waits for it raises it
            if len(jobs) == 1 or self._closed:
                return [error] * len(jobs)
            return [answer for job in jobs for answer in self._answers([job])]

    def _compute(self, jobs: list[tuple]) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        model, pixels, strength, maps = jobs[0]
        enhancer = self._enhancers[model]
        if maps:
            enhanced, drawings = enhancer.draw(pixels)
            return [(mix(pixels, enhanced, Control(strength)), drawings)]
        if strength == 0:
            return [(low, {}) for _, low, _, _ in jobs]
        if len(jobs) == 1:
            return [(mix(pixels, enhancer(pixels), Control(strength)), {})]
        lows = np.stack([low for _, low, _, _ in jobs])
        return [(mix(low, enhanced, Control(strength)), {})
                for low, enhanced in zip(lows, enhancer(lows), strict=True)]


def _key(job: tuple) -> tuple | None:
    """What jobs of one batch have in common; None for one that runs alone."""
    model, pixels, strength, maps = job
    return None if maps else (model, pixels.shape, pixels.dtype, strength)
