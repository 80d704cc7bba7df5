"""Ownership of a run in storage without file locks: a small file that its owner rewrites as long as it lives.

Object stores have no locks, and pyarrow has no conditional write, so the owner cannot be asked and nothing ends its
ownership when it is killed. Whoever wants the run therefore watches the file. If the file changes, the owner lives; if
it does not change for `DEAD_SECONDS`, the owner counts as dead and the file is overwritten. Clocks of two machines are
never compared. If two commands begin at the same time, both write, and both look again after `SETTLE_SECONDS`: the one
that wrote last owns the run. An owner that could not write for so long that another command has taken the run, because
its machine was suspended for example, finds this out before it writes again, and its process ends at once: whatever it
saved now would be among the files of the new owner. (Ray ends its workers, which may still save the step they are at.)
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

from raypp.storage import Location, tidying

logger = logging.getLogger("raypp")

BEAT_SECONDS = 5.0
DEAD_SECONDS = 30.0
SETTLE_SECONDS = 1.0  # longer than an owner usually takes from reading the file to having written it
WATCH_SECONDS = 0.5


def this_process() -> dict[str, Any]:
    """What a lock file says about its owner."""
    return {"pid": os.getpid(), "host": os.uname().nodename}


def is_lease(content: str) -> bool:
    """Whether a lock file is that of a lease, and not one with a file lock."""
    return '"lease"' in content


class Lease:
    """One command's claim to the run that a file belongs to."""

    def __init__(self, file: Location, command: str | None = None) -> None:
        self.file = file
        self._owner = {**this_process(), "command": command}
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {file}", daemon=True)
        self._told = False

    def acquire(self) -> str | None:
        """Becomes the owner, unless another command is. Takes up to `DEAD_SECONDS` if the last owner was killed.

        Returns:
            None, or the content of the file if another command owns the run. May then be called again.

        Raises:
            OSError: the storage fails after all retries.
        """
        if (owner := self._living_owner()) is not None:
            return owner
        self.file.parent.make_folder()
        try:
            self.file.write_text(self._next_content())
            time.sleep(SETTLE_SECONDS)
            content = self._read()
        except BaseException:  # an interrupt, too
            self._delete()
            raise
        if not self._is_own(content):
            return content or "just ended"
        self._thread.start()
        return None

    def release(self, *, expires: bool = False) -> None:
        """Gives the run up. An error is only logged.

        Args:
            expires: whether to leave the file, so that the next command has to watch it for `DEAD_SECONDS`.
        """
        self._ended.set()
        if expires:
            return
        self._thread.join()
        self._delete()

    def _living_owner(self) -> str | None:
        """The content of the file as soon as its owner gives a sign of life; None if it gives none, or there is no
        owner."""
        seen = self._read()
        if seen is None:
            return None
        if not self._told:
            self._told = True
            logger.warning(
                "%s: another command works on it, or was killed; watching for up to %.0f s", self.file, DEAD_SECONDS
            )
        deadline = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            asked = time.monotonic()
            if (content := self._read()) != seen:
                return content
            if time.monotonic() - asked > BEAT_SECONDS:
                # The storage did not answer, so its owner may have been unable to write.
                deadline = time.monotonic() + DEAD_SECONDS
        return None

    def _keep(self) -> None:
        """Rewrites the file until the lease is released. If another command owns the run, this process ends."""
        beats = replace(self.file, patient=False)  # the pauses between retries become longer than DEAD_SECONDS
        while not self._ended.wait(BEAT_SECONDS):
            try:
                content = self._read(beats)
                if self._is_own(content):
                    beats.write_text(self._next_content())
                    continue
            except OSError as error:  # what the command itself writes fails, too, and says more
                logger.info("%s cannot be renewed (%s)", self.file, error)
                continue
            if self._ended.is_set():
                return
            if content is None:
                why = "was deleted, perhaps by another command that had taken over and has ended since"
            else:
                why = f"belongs to another command, which has taken over after {DEAD_SECONDS:.0f} s: {content}"
            logger.error("%s %s; this command ends at once, and saves nothing", self.file, why)
            logging.shutdown()
            os._exit(1)

    def _read(self, file: Location | None = None) -> str | None:
        try:
            return (file or self.file).read_text()
        except FileNotFoundError:
            return None

    def _next_content(self) -> str:
        self._beats += 1
        return json.dumps({**self._owner, "lease": self._token, "beats": self._beats})

    def _delete(self) -> None:
        with tidying(self.file):
            if self._is_own(self._read()):
                self.file.delete()

    def _is_own(self, content: str | None) -> bool:
        return content is not None and self._token in content
