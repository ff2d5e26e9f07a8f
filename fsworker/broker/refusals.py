"""What becomes of a refusal: it is counted where ``fsworker stats`` finds it, and the job's owner reads why.

A queue can be filled with rubbish faster than a person reads, so what a refusal leaves is small and short-lived: a number
for each queue and reason, and, under an id of the sender's own application, a failure that expires within the hour.
"""

from __future__ import annotations

from collections.abc import Callable

from fsworker.broker.judge import Refused
from fsworker.broker.kv import KV
from fsworker.broker.names import Names
from fsworker.broker.resultmeta import meta_of_failure
from fsworker.model import Failure

ROLES = ("ingest", "maintenance")
_FAILURE_EXPIRES_S = 3600.0


def reporter(kv: Callable[[], KV], names: Names, role: str, retention_s: float) -> Callable[[Refused, str], None]:
    """What :func:`fsworker.broker.door.configure` wants to be told: raises :class:`RedisUnavailableError`."""
    expires_s = min(_FAILURE_EXPIRES_S, retention_s)

    def report(refused: Refused, queue: str) -> None:
        kv().count(names.refused_key(role), f"{queue} {refused.reason}")
        if refused.job_id is not None:
            failure = Failure(type="UploadRejectedError", message=f"the message was refused: {refused.detail}")
            kv().set_results([(refused.job_id, meta_of_failure(failure))], expires_s, overwrite=False)

    return report


def refusals(kv: KV, names: Names) -> dict[str, dict[str, int]]:
    """Refused messages by queue and reason, of all workers, since Redis was last emptied."""
    counts: dict[str, dict[str, int]] = {}
    for role in ROLES:
        for field, count in kv.counts(names.refused_key(role)).items():
            queue, _, reason = field.rpartition(" ")
            counts.setdefault(queue, {})[reason] = count
    return counts
