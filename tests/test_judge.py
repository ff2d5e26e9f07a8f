"""What becomes of a message: refused with a reason, or rebuilt so that only task, id and arguments are the sender's."""

from __future__ import annotations

import base64
import copy
import json
import random
import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import hostile_messages
import pytest
from hostile_messages import EMBED, JUNK, KWARGS, QUEUE, TASK, base64_json, plain, plain_bytes
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import loads as kombu_loads

from fsworker.broker.judge import Accepted, QueueRules, Reason, Refused, judge, printable
from fsworker.errors import UploadRejectedError
from fsworker.model import MAX_HASHES_PER_CLAIM, ClaimRequest, IngestRequest

JOB_ID = "shop.0123abcd-0000-4000-8000-0123456789ab"
RULES = QueueRules(
    QUEUE,
    {TASK: IngestRequest.model_validate, "fsworker.claim": ClaimRequest.model_validate},
    "shop.",
)
OWN_RULES = QueueRules("fsworker.maintenance", {"fsworker.sweep": lambda _: None}, None)


def accepted(raw: bytes, rules: QueueRules = RULES) -> Accepted:
    verdict = judge(raw, rules)
    assert isinstance(verdict, Accepted), verdict
    return verdict


def refused(raw: bytes, rules: QueueRules = RULES) -> Refused:
    verdict = judge(raw, rules)
    assert isinstance(verdict, Refused), verdict
    return verdict


def meaning(message: dict[str, Any]) -> dict[str, Any]:
    """All of a rebuilt message but the fresh delivery tag, with its body decoded."""
    shown = copy.deepcopy(message)
    del shown["properties"]["delivery_tag"]
    shown["body"] = json.loads(base64.b64decode(shown["body"]))
    return shown


# What is accepted


def test_plain_message_keeps_its_task_id_and_arguments() -> None:
    verdict = accepted(plain_bytes(JOB_ID))
    assert (verdict.task, verdict.job_id) == (TASK, JOB_ID)
    message = verdict.message
    headers, properties = message["headers"], message["properties"]
    assert headers["task"] == TASK
    assert headers["id"] == headers["root_id"] == properties["correlation_id"] == JOB_ID
    assert json.loads(base64.b64decode(message["body"])) == [[], KWARGS, EMBED]
    assert properties["delivery_info"] == {"exchange": "", "routing_key": QUEUE, "redelivered": False}


def test_rebuilt_message_is_accepted_again_with_the_same_meaning() -> None:
    first = accepted(plain_bytes(JOB_ID)).message
    again = accepted(json.dumps(first).encode()).message
    assert meaning(again) == meaning(first)
    assert again["properties"]["delivery_tag"] != first["properties"]["delivery_tag"]


def test_steering_fields_are_dropped_whatever_they_hold() -> None:
    cases = hostile_messages.defused()
    assert len(cases) > 300
    for case in cases:
        verdict = judge(case.raw, RULES)
        assert isinstance(verdict, Accepted), (case.name, verdict)
        plainly = accepted(plain_bytes(verdict.job_id)).message
        assert meaning(verdict.message) == meaning(plainly), case.name


@pytest.mark.parametrize(("claim", "kept"), [(True, True), (False, False), (1, False), ("true", False), (None, False)])
def test_that_a_message_was_delivered_before_is_kept(claim: object, kept: bool) -> None:
    raw = plain(JOB_ID)
    raw["properties"]["delivery_info"]["redelivered"] = claim
    assert accepted(json.dumps(raw).encode()).message["properties"]["delivery_info"]["redelivered"] is kept


@pytest.mark.parametrize("text", ["é", "😀", "\u2028", 'a"b\\c/', "\x7f", "", "[[[", "\ud7ff\ue000"])
def test_arguments_survive_in_any_alphabet(text: str) -> None:
    rules = QueueRules(QUEUE, {TASK: lambda _: None}, "shop.")
    message = accepted(plain_bytes(JOB_ID, kwargs={"x": [text], text: 1}), rules).message
    assert json.loads(base64.b64decode(message["body"]))[1] == {"x": [text], text: 1}
    # What kombu reads in the child is what was judged here.
    assert kombu_loads(base64.b64decode(message["body"]))[1] == {"x": [text], text: 1}


def test_a_claim_of_as_many_hashes_as_allowed_fits() -> None:
    hashes = [f"{number:040x}" for number in range(MAX_HASHES_PER_CLAIM)]
    raw = plain_bytes(JOB_ID, task="fsworker.claim", kwargs={"hashes": hashes})
    accepted(json.dumps(accepted(raw).message).encode())


def test_validator_cannot_change_what_runs() -> None:
    rules = QueueRules(QUEUE, {TASK: lambda kwargs: kwargs.update(upload="other")}, "shop.")
    assert meaning(accepted(plain_bytes(JOB_ID), rules).message)["body"][1] == KWARGS


@pytest.mark.parametrize("suffix", ["12345678", "a" * 64, "A-Z_a-z0", "0123abcd-0000-4000-8000-0123456789ab"])
def test_job_ids_of_the_queue_are_admitted(suffix: str) -> None:
    assert RULES.admits_job_id(f"shop.{suffix}")
    assert accepted(plain_bytes(f"shop.{suffix}")).job_id == f"shop.{suffix}"


def test_a_dot_in_the_prefix_is_only_a_dot() -> None:
    assert not RULES.admits_job_id("shopx12345678")


# The queue of fsworker's own producers


def test_own_queue_takes_any_plain_id_and_expires() -> None:
    raw = plain("0123abcd-0000-4000-8000-0123456789ab", task="fsworker.sweep", kwargs={})
    raw["headers"]["expires"] = "2026-11-22T12:00:00+02:00"
    verdict = accepted(json.dumps(raw).encode(), OWN_RULES)
    assert verdict.message["headers"]["expires"] == "2026-11-22T10:00:00+00:00"
    assert verdict.message["properties"]["delivery_info"]["routing_key"] == "fsworker.maintenance"
    again = accepted(json.dumps(verdict.message).encode(), OWN_RULES)
    assert meaning(again.message) == meaning(verdict.message)


def test_expires_without_a_zone_is_utc() -> None:
    raw = plain("sweep-12345678", task="fsworker.sweep", kwargs={})
    raw["headers"]["expires"] = "2026-11-22T12:00:00"
    expires = accepted(json.dumps(raw).encode(), OWN_RULES).message["headers"]["expires"]
    assert datetime.fromisoformat(expires) == datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize("expires", ["1999-01-01", "2200-01-01", "9999-12-31T23:59:59-14:00", "soon", 5, [], True])
def test_own_queue_refuses_expires_that_are_no_time(expires: object) -> None:
    raw = plain("sweep-12345678", task="fsworker.sweep", kwargs={})
    raw["headers"]["expires"] = expires
    assert refused(json.dumps(raw).encode(), OWN_RULES).reason == Reason.ETA


@pytest.mark.parametrize("job_id", ["short", "a" * 129, "a/b-12345", "a b-12345", "12345678\n", *JUNK])
def test_own_queue_refuses_ids_that_are_no_plain_word(job_id: object) -> None:
    raw = plain(task="fsworker.sweep", kwargs={})
    raw["headers"]["id"] = job_id
    assert refused(json.dumps(raw).encode(), OWN_RULES).reason == Reason.FOREIGN_ID


# What is refused


def test_every_hostile_message_is_refused_for_its_reason() -> None:
    cases = hostile_messages.refused()
    assert len(cases) > 500
    wrong = [
        (case.family, case.name, case.reason, verdict)
        for case in cases
        if not isinstance(verdict := judge(case.raw, RULES), Refused) or verdict.reason != case.reason
    ]
    assert wrong == []


def test_every_reason_has_hostile_messages() -> None:
    met = Counter(case.reason for case in hostile_messages.refused())
    assert set(met) == set(Reason) - {Reason.UNKNOWN_QUEUE}  # which the door gives
    assert min(met.values()) >= 5


def test_details_are_short_printable_and_on_one_line() -> None:
    for case in hostile_messages.refused():
        detail = refused(case.raw).detail
        assert re.fullmatch(r"[ -~]{10,300}", detail), case.name


def test_a_refusal_names_the_job_only_if_it_is_the_senders_own() -> None:
    cases = hostile_messages.refused()
    named = [job_id for case in cases if (job_id := refused(case.raw).job_id) is not None]
    assert len(named) > 300
    assert all(RULES.admits_job_id(job_id) for job_id in named)
    assert not any(refused(case.raw).job_id for case in cases if case.family == "foreign_ids")


def test_a_message_too_large_to_read_still_names_its_job() -> None:
    raw = plain_bytes(JOB_ID, kwargs={"upload": "x" * 600_000})
    assert refused(raw) == Refused(Reason.TOO_LARGE, refused(raw).detail, JOB_ID)
    assert refused(b"[" * 600_000).job_id is None


def test_the_bound_of_size_is_the_queues() -> None:
    raw = plain_bytes(JOB_ID)
    assert refused(raw, QueueRules(QUEUE, RULES.tasks, "shop.", max_bytes=len(raw) - 1)).reason == Reason.TOO_LARGE


def test_a_message_that_would_outgrow_the_queue_when_rebuilt_is_refused_at_once() -> None:
    rules = QueueRules(QUEUE, {TASK: lambda _: None}, "shop.", max_bytes=20_000)
    raw = plain(JOB_ID)
    raw["body"] = base64.b64encode(b'[[], {"x": [' + b",".join([b"1e15"] * 1000) + b"]}, {}]").decode()
    assert len(json.dumps(raw)) < rules.max_bytes
    assert refused(json.dumps(raw).encode(), rules).reason == Reason.TOO_LARGE


@pytest.mark.parametrize(
    "error", [UploadRejectedError("no\nsuch"), ValueError("no\nsuch"), ZeroDivisionError("no\nsuch")]
)
def test_whatever_a_validator_raises_is_a_refusal(error: Exception) -> None:
    def validator(_: dict[str, Any]) -> None:
        raise error

    verdict = refused(plain_bytes(JOB_ID), QueueRules(QUEUE, {TASK: validator}, "shop."))
    assert verdict.reason == Reason.ARGUMENTS
    assert verdict.job_id == JOB_ID
    assert "no\\nsuch" in verdict.detail


@pytest.mark.parametrize(
    ("value", "text"),
    [("a\n\x1b[2J", r"a\n\x1b[2J"), ("é", r"\xe9"), (1, "1"), ([], "list"), ("x" * 200, "x" * 97 + "...")],
)
def test_printable(value: object, text: str) -> None:
    assert printable(value) == text


# Invariants, for any bytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def check_invariants(raw: bytes, rules: QueueRules = RULES) -> None:
    """Never an exception; what is accepted is a plain message of this queue, and is accepted again."""
    verdict = judge(raw, rules)
    if isinstance(verdict, Refused):
        assert re.fullmatch(r"[ -~]{1,300}", verdict.detail)
        assert verdict.job_id is None or rules.admits_job_id(verdict.job_id)
        return
    message = verdict.message
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (args, embed) == ([], EMBED)
    rules.tasks[verdict.task](kwargs)
    assert meaning(message) == meaning(accepted(json.dumps(message).encode(), rules).message)
    expected = accepted(plain_bytes(verdict.job_id, task=verdict.task, kwargs=kwargs), rules).message
    message["properties"]["delivery_info"]["redelivered"] = False
    assert meaning(message) == meaning(expected)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(raw: bytes) -> None:
    check_invariants(raw)


@given(json_values)
def test_any_json_is_judged(value: Any) -> None:
    check_invariants(json.dumps(value).encode())
    message = plain(JOB_ID)
    message["body"] = base64_json(value)
    check_invariants(json.dumps(message).encode())


@given(st.dictionaries(st.sampled_from(["upload", "thumbnails", "max_bytes", "x"]), json_values))
def test_any_arguments_are_judged(kwargs: dict[str, Any]) -> None:
    check_invariants(plain_bytes(JOB_ID, kwargs=kwargs))
    check_invariants(plain_bytes(JOB_ID, kwargs=kwargs), QueueRules(QUEUE, {TASK: lambda _: None}, "shop."))


def test_any_mutation_of_a_good_message_is_judged() -> None:
    dice = random.Random(3)
    good = plain_bytes(JOB_ID)
    for _ in range(3000):
        mutant = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            position = dice.randrange(len(mutant))
            action = dice.randrange(3)
            if action == 0:
                mutant[position] = dice.randrange(256)
            elif action == 1:
                del mutant[position : position + dice.randint(1, 30)]
            else:
                mutant[position:position] = mutant[position : position + dice.randint(1, 30)]
        check_invariants(bytes(mutant))


def test_any_exchange_of_nodes_is_judged() -> None:
    """Values from all over the message, and junk, put in all places."""
    dice = random.Random(4)
    body = [[], KWARGS, EMBED]
    for _ in range(3000):
        message = plain(JOB_ID)
        message["body"] = copy.deepcopy(body)
        for _ in range(dice.randint(1, 3)):
            nodes = list(_nodes(message))
            container, key = dice.choice(nodes)
            source, source_key = dice.choice(nodes)
            value = copy.deepcopy(dice.choice([source[source_key], *JUNK]))
            container[key] = value
        if dice.random() < 0.9:
            message["body"] = base64_json(message["body"])
        check_invariants(json.dumps(message).encode())


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [node for key in keys for node in [(value, key), *_nodes(value[key])]]
