"""How an attempt ends whose body is a container, and what its last words become."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.run_states import AttemptEnd
from cronplane_entries.invocation import encode_result
from cronplane_operator import image_outcome

NONCE = UUID(int=1)
COMPLETE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}


def failed(reason: str = "BackoffLimitExceeded") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason}]}}


def pods(code: int, words: str = "", reason: str = "Error") -> list[dict[str, Any]]:
    terminated = {"exitCode": code, "reason": reason, **({"message": words} if words else {})}
    return [{"metadata": {"name": "a-pod"}, "status": {"containerStatuses": [{"state": {"terminated": terminated}}]}}]


@pytest.mark.parametrize(
    ("words", "result"),
    [
        ("", None),
        ('{"rows": 7}', {"rows": 7}),
        ("seven rows", {"message": "seven rows"}),
        ("[7]", {"message": "[7]"}),
        ("null", {"message": "null"}),
        ('{"rows": NaN}', {"message": '{"rows": NaN}'}),
        ('{"rows": 1e999}', {"message": '{"rows": 1e999}'}),
        ('{"rows": "\\u0000"}', {"message": '{"rows": "\\u0000"}'}),
        ('{"rows": "\\ud800"}', {"message": '{"rows": "\\ud800"}'}),
        ("a\0b", {"message": "a\ufffdb"}),
        ("[" * 4096, {"message": "[" * 4096}),
        ('{"rows": ' + "1" * 4087, {"message": '{"rows": ' + "1" * 4087}),
    ],
)
def test_last_words_that_are_an_object_are_the_result_and_others_are_in_it(words: str, result: object) -> None:
    finished = image_outcome.finished(NONCE, COMPLETE, pods(0, words))
    assert (finished.ended.end, finished.error_json) == (AttemptEnd.COMPLETED, None)
    assert (json.loads(finished.result_json) if finished.result_json else None) == result


@given(words=st.text(min_size=1, max_size=4096))
def test_any_last_words_are_a_result_that_can_be_kept(words: str) -> None:
    kept = image_outcome.finished(NONCE, COMPLETE, pods(0, words)).result_json
    assert kept is not None
    assert encode_result(json.loads(kept)) == kept


@pytest.mark.parametrize(
    ("job", "ending", "end", "reason"),
    [
        (failed(), pods(7), AttemptEnd.ERROR, "ExitCode"),
        # Of an image of somebody's own, 3 is a code like any other.
        (failed(), pods(3), AttemptEnd.ERROR, "ExitCode"),
        (failed(), pods(137, reason="OOMKilled"), AttemptEnd.ERROR, "OutOfMemory"),
        (failed("DeadlineExceeded"), pods(143), AttemptEnd.TIMED_OUT, "AttemptTimeout"),
        (failed("PodFailurePolicy"), pods(143), AttemptEnd.LOST, "Evicted"),
        (failed(), [], AttemptEnd.LOST, "PodGone"),
    ],
)
def test_what_did_not_complete_has_no_result(
    job: dict[str, Any], ending: list[dict[str, Any]], end: AttemptEnd, reason: str
) -> None:
    finished = image_outcome.finished(NONCE, job, ending)
    assert (finished.ended.end, finished.ended.reason, finished.result_json) == (end, reason, None)


def test_the_last_words_of_a_failure_are_the_message_of_its_error_and_no_part_of_its_sentence() -> None:
    finished = image_outcome.finished(NONCE, failed(), pods(7, "the disk is full"))
    assert finished.error_json is not None
    assert json.loads(finished.error_json) == {"type": "ExitCode", "message": "the disk is full", "traceback": ""}
    assert "disk" not in finished.ended.message
