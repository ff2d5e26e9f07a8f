"""When the next collection and the next purge are due: noted in the store, and seen to by the sweep.

Beat asks for both, and each part for the next. But a message is lost with a Redis, a part is killed with its process, and
beat forgets what it did when its schedule file goes, as a container's does with each restart: then what is due once a day
would come a day late, or never. So the store itself notes how each stands (``Lock/due-collect.json``,
``Lock/due-purge.json``), and the sweep sends again what is past its time. Beat and the parts come first; normally the sweep
finds nothing to send.

* *Begun*, or the next part asked for: within twice the visibility timeout the next part has to begin. Doubled with each
  attempt that ended in nothing, up to six hours.
* *Postponed*, because another was at work, a hold was in force or the registry changed: due at once. Beat starts both at the
  same moment; without this, the longer one would keep the other from ever coming to its turn.
* *Over*, done or refused: due one interval later, and a quarter of an hour. Where the interval is off: never.

The notes are not synced: one that is lost costs an interval. One that cannot be written is told, and stops nothing.
"""

from __future__ import annotations

import logging

from fsworker.config import Settings
from fsworker.errors import FSWorkerError
from fsworker.store.handle import StoreHandle
from fsworker.store.notes import BrokenNoteError, read_note, write_note

log = logging.getLogger(__name__)

_SLACK_S = 900.0
_LONGEST_PATIENCE_S = 6 * 3600.0


class Agenda:
    """How collection and purge of one store stand, ``what`` being ``collect`` or ``purge``. Times are the store's."""

    def __init__(self, store: StoreHandle, settings: Settings) -> None:
        self._store = store
        self._every_s = {"collect": settings.collect_every, "purge": settings.purge_every}
        self._patience_s = 2 * settings.visibility_timeout

    def begun(self, what: str) -> None:
        """A part begins. Should nothing more be heard of it, it is sent again."""
        attempts = self._attempts(what) + 1
        self._note_due(what, min(_LONGEST_PATIENCE_S, self._patience_s * 2 ** (attempts - 1)), attempts)

    def goes_on(self, what: str) -> None:
        """A part has ended well, and the next one was sent."""
        self._note_due(what, self._patience_s)

    def sent(self, what: str) -> None:
        """It was sent again. How often it was tried before still counts."""
        self._note_due(what, self._patience_s, self._attempts(what))

    def postponed(self, what: str) -> None:
        """It could not begin, or go on, for a reason that passes by itself."""
        self._note_due(what, 0.0)

    def over(self, what: str) -> None:
        """It is done, or was refused."""
        self._note(what, "over", 0.0)

    def is_due(self, what: str) -> bool:
        """Whether it has to be sent now. For what was never noted the interval begins here. Raises ``OSError``."""
        try:
            note = read_note(self._store, _name(what))
        except BrokenNoteError as error:
            log.warning("%s; the %s is sent", error, what)
            return True
        if note is None:
            self.over(what)
            return False
        now_s, every_s = self._store.probe_clock(), self._every_s[what]
        over_s, due_s = note.get("over"), note.get("due")
        if isinstance(over_s, (int, float)):
            return every_s is not None and not over_s - _SLACK_S <= now_s < over_s + every_s + _SLACK_S
        # Further ahead than anything is noted: a clock that was set back.
        return not isinstance(due_s, (int, float)) or not now_s < due_s <= now_s + _LONGEST_PATIENCE_S + _SLACK_S

    def _attempts(self, what: str) -> int:
        try:
            attempts = (read_note(self._store, _name(what)) or {}).get("attempts")
        except (BrokenNoteError, OSError):
            return 0
        return min(attempts, 16) if isinstance(attempts, int) and attempts > 0 else 0

    def _note_due(self, what: str, in_s: float, attempts: int = 0) -> None:
        self._note(what, "due", in_s, attempts=attempts)

    def _note(self, what: str, state: str, in_s: float, **more: int) -> None:
        try:
            write_note(self._store, _name(what), {state: self._store.probe_clock() + in_s, **more}, sync=False)
        except (OSError, FSWorkerError) as error:
            log.warning("when the next %s is due cannot be noted: %s", what, error)


def _name(what: str) -> str:
    return f"due-{what}.json"
