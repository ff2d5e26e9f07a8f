"""Names of queues and tasks, all beginning with the namespace, so that several stores can share one broker. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """The names of one namespace (``fsworker`` unless set otherwise)."""

    namespace: str = "fsworker"

    @property
    def maintenance_queue(self) -> str:
        """Where beat and the maintenance worker's own parts go; closed to applications."""
        return f"{self.namespace}.maintenance"

    def ingest_queue(self, app: str) -> str:
        """Where an application sends its tasks."""
        return f"{self.namespace}.ingest.{app}"

    def done_queue(self, app: str) -> str:
        """Where an application's callbacks (``on_done``) come."""
        return f"{self.namespace}.done.{app}"

    def app_of_ingest_queue(self, queue: str) -> str | None:
        """The application of an ingest queue, or ``None`` for another queue."""
        prefix = f"{self.namespace}.ingest."
        return queue.removeprefix(prefix) if queue.startswith(prefix) else None

    def keep_prefix(self, app: str) -> str:
        """What all keys of an application's keep-set begin with; only it may write them (design section 2)."""
        return f"{self.namespace}:keep:{app}:"

    def manifest_key(self, app: str) -> str:
        """Where an application's committed manifest is."""
        return f"{self.keep_prefix(app)}manifest"

    def part_key(self, app: str, generation: str, shard: int, number: int) -> str:
        """Where a part of a generation's shard is."""
        return f"{self.keep_prefix(app)}{generation}:{shard:02x}:{number}"

    def unacked_prefix(self, role: str) -> str:
        """Prefix of the keys in which a role's workers note what they took; roles must not share them."""
        return f"{self.namespace}:{role}:"

    def unacked_key(self, role: str) -> str:
        """The hash of messages that a role's workers have taken and not acknowledged."""
        return f"{self.unacked_prefix(role)}unacked"

    def refused_key(self, role: str) -> str:
        """The hash of how many messages a role's workers have refused, by queue and reason."""
        return f"{self.unacked_prefix(role)}refused"


TASK_PREFIX = "fsworker"
"""Task names do not follow the namespace: they name code, queues name places."""

INGEST = f"{TASK_PREFIX}.ingest"
INGEST_MANY = f"{TASK_PREFIX}.ingest_many"
THUMBNAIL = f"{TASK_PREFIX}.thumbnail"
CLAIM = f"{TASK_PREFIX}.claim"
SWEEP = f"{TASK_PREFIX}.sweep"
COLLECT = f"{TASK_PREFIX}.collect"
COLLECT_PART = f"{TASK_PREFIX}.collect_part"
VERIFY = f"{TASK_PREFIX}.verify"
PURGE = f"{TASK_PREFIX}.purge"
PURGE_PART = f"{TASK_PREFIX}.purge_part"
