"""The messages between runner and workers, put together from any pieces and never believed unread."""

from datetime import UTC, datetime
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_operator.worker_protocol import (
    MAXIMUM_FRAME_BYTES,
    ErrorRecord,
    Outcome,
    OutcomeReader,
    Task,
    WorkerProtocolError,
    decode_task,
    encode_outcome,
    encode_task,
    storable,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
outcomes = st.builds(
    Outcome,
    attempt_id=st.uuids(),
    status=st.sampled_from(["completed", "error"]),
    reason=texts,
    message=texts,
    result_json=st.none() | texts,
    error=st.none() | st.builds(ErrorRecord, type=texts, message=texts, traceback=texts),
    output=texts,
)


@given(sent=st.lists(outcomes, max_size=5), cuts=st.lists(st.integers(1, 40), max_size=50))
def test_outcomes_arrive_whole_in_whatever_pieces(sent: list[Outcome], cuts: list[int]) -> None:
    stream, reader = b"".join(map(encode_outcome, sent)), OutcomeReader()
    received: list[Outcome] = []
    for cut in [*cuts, len(stream)]:
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received == sent


def test_a_task_arrives_as_it_was_sent() -> None:
    now = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
    task = Task(
        attempt_id=uuid4(),
        entrypoint="no_op",
        payload_json='{"text":"\\u0000 é"}',
        cron_id=uuid4(),
        cron_name="a 👋 cron",
        organization_id=uuid4(),
        run_id=uuid4(),
        trigger="manual",
        attempt=2,
        scheduled_for=now,
        deadline=now,
        timeout=1.5,
    )
    assert decode_task(encode_task(task)) == task


GOOD = {
    "attempt_id": str(uuid4()),
    "status": "completed",
    "reason": "Completed",
    "message": "",
    "result_json": None,
    "error": None,
    "output": "",
}


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"{}",
        orjson.dumps(GOOD | {"attempt_id": "1"}),
        orjson.dumps(GOOD | {"status": "timed_out"}),
        orjson.dumps(GOOD | {"status": 1}),
        orjson.dumps(GOOD | {"output": ["x"]}),
        orjson.dumps(GOOD | {"reason": "x" * 100}),
        orjson.dumps(GOOD | {"error": "x"}),
        orjson.dumps(GOOD | {"error": {"type": "x"}}),
    ],
)
def test_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(WorkerProtocolError):
        list(OutcomeReader().feed(len(body).to_bytes(4, "big") + body))


def test_an_endless_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(WorkerProtocolError):
        list(OutcomeReader().feed((MAXIMUM_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_text_is_made_fit_for_postgresql() -> None:
    assert storable("a\0b\ud800c", longest=4) == "a\ufffdb?"
