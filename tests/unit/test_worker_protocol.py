"""What passes between the runner and its workers survives the way, and what a worker must not say is refused."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_operator.worker_protocol import (
    MAXIMUM_FRAME_BYTES,
    MAXIMUM_OUTPUT_BYTES,
    MAXIMUM_TASK_BYTES,
    ErrorRecord,
    Outcome,
    OutcomeReader,
    SharedOutput,
    Task,
    WorkerProtocolError,
    decode_task,
    encode_outcome,
    encode_task,
    storable,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
TASK = Task(
    attempt_id=UUID(int=1),
    entrypoint="no_op",
    payload_json='{"greeting": "hello"}',
    cron_id=UUID(int=2),
    cron_name="a cron",
    organization_id=UUID(int=3),
    run_id=UUID(int=4),
    trigger="schedule",
    attempt=1,
    scheduled_for=datetime(2026, 3, 29, 1, tzinfo=UTC),
    deadline=datetime(2026, 3, 29, 2, 0, 0, 123456, tzinfo=UTC),
    timeout=3600.0,
)
OUTCOME = Outcome(attempt_id=UUID(int=1), status="completed", reason="Completed", message="The entry finished.")


@pytest.fixture
def output() -> Iterator[SharedOutput]:
    descriptor = SharedOutput.allocate()
    memory = SharedOutput(descriptor)
    os.close(descriptor)
    yield memory
    memory.close()


@given(payload=st.dictionaries(TEXTS, TEXTS), name=TEXTS)
def test_a_task_arrives_as_it_was_sent(payload: dict[str, str], name: str) -> None:
    task = replace(TASK, payload_json=json.dumps(payload, indent=1), cron_name=name)
    assert decode_task(encode_task(task)) == task


def test_the_largest_payload_that_can_be_registered_fits_even_if_it_is_all_quotes() -> None:
    payload = json.dumps({"text": '"' * (128 * 1024 // 2 - 7)})
    assert len(payload) == 128 * 1024 - 2
    assert len(encode_task(replace(TASK, payload_json=payload, cron_name="😀" * 200))) <= MAXIMUM_TASK_BYTES


@given(
    outcomes=st.lists(
        st.builds(
            Outcome,
            attempt_id=st.uuids(),
            status=st.sampled_from(["completed", "error"]),
            reason=st.just("Word"),
            message=TEXTS,
            result_json=st.none() | TEXTS,
            error=st.none() | st.builds(ErrorRecord, type=TEXTS, message=TEXTS, traceback=TEXTS),
            output=TEXTS,
        ),
        max_size=5,
    ),
    data=st.data(),
)
def test_outcomes_are_put_together_from_whatever_pieces_arrive(outcomes: list[Outcome], data: st.DataObject) -> None:
    stream = b"".join(map(encode_outcome, outcomes))
    reader = OutcomeReader()
    arrived: list[Outcome] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        arrived += reader.feed(stream[:size])
        stream = stream[size:]
    assert arrived == outcomes


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def outcome_with(**changes: Any) -> bytes:
    fields = orjson.loads(orjson.dumps(OUTCOME)) | changes
    return frame(orjson.dumps({name: value for name, value in fields.items() if value is not ...}))


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param((MAXIMUM_FRAME_BYTES + 1).to_bytes(4, "big"), id="a frame that is too long"),
        pytest.param(frame(b""), id="nothing"),
        pytest.param(frame(b"\x80\x04K\x01."), id="a pickle"),
        pytest.param(frame(b"[]"), id="no object"),
        pytest.param(frame(b"7"), id="a number"),
        pytest.param(frame(b"[" * 5000), id="deep nesting"),
        pytest.param(frame(b'"\\ud800"'), id="a lone surrogate"),
        pytest.param(outcome_with(attempt_id="nobody"), id="no id"),
        pytest.param(outcome_with(attempt_id=1), id="an id that is a number"),
        pytest.param(outcome_with(status="timed_out"), id="a status that is the runner's to give"),
        pytest.param(outcome_with(status="running"), id="a status that is no end"),
        pytest.param(outcome_with(reason="R" * 65), id="a long reason"),
        pytest.param(outcome_with(message="m" * 5000), id="a long message"),
        pytest.param(outcome_with(result_json={"not": "text"}), id="a result that is no text"),
        pytest.param(outcome_with(output="o" * (MAXIMUM_OUTPUT_BYTES + 1000)), id="a long output"),
        pytest.param(outcome_with(output="\0"), id="an output that cannot be stored"),
        pytest.param(outcome_with(output=...), id="a field that is absent"),
        pytest.param(outcome_with(error="oops"), id="an error that is no record"),
        pytest.param(outcome_with(error={"type": "T", "message": "m"}), id="an error without a traceback"),
    ],
)
def test_what_is_no_outcome_is_refused_after_the_outcomes_before_it(sent: bytes) -> None:
    outcomes = OutcomeReader().feed(encode_outcome(OUTCOME) + sent)
    assert next(outcomes) == OUTCOME
    with pytest.raises(WorkerProtocolError):
        next(outcomes)


@given(text=st.text(st.characters()), longest=st.integers(0, 50))
def test_whatever_an_entry_wrote_is_made_storable(text: str, longest: int) -> None:
    stored = storable(text, longest=longest)
    assert len(stored) <= longest
    assert "\0" not in stored
    assert stored.encode("utf-8", "replace").decode() == stored


def test_output_is_kept_until_it_is_cleared(output: SharedOutput) -> None:
    assert output.read() == ""
    output.append(b"one\n")
    output.append("zwölf\n".encode())
    assert output.read() == "one\nzwölf\n"
    output.clear()
    assert output.read() == ""


@given(pieces=st.lists(st.binary(max_size=MAXIMUM_OUTPUT_BYTES), max_size=4))
def test_output_is_bounded_and_storable_whatever_is_written(pieces: list[bytes]) -> None:
    descriptor = SharedOutput.allocate()
    output = SharedOutput(descriptor)
    os.close(descriptor)
    for piece in pieces:
        output.append(piece)
    text = output.read()
    output.close()
    assert len(text.encode()) <= MAXIMUM_OUTPUT_BYTES * 3 + 100
    assert "\0" not in text
    assert ("cut off" in text) == (sum(map(len, pieces)) > MAXIMUM_OUTPUT_BYTES)


def test_a_character_that_lies_across_the_bound_is_left_out(output: SharedOutput) -> None:
    output.append(b"x" * (MAXIMUM_OUTPUT_BYTES - 1) + "é".encode())
    assert output.read().startswith("x" * (MAXIMUM_OUTPUT_BYTES - 1) + "\n…")


def test_a_forged_length_reads_no_further_than_the_memory_goes() -> None:
    descriptor = SharedOutput.allocate()
    output = SharedOutput(descriptor)
    os.pwrite(descriptor, b"\xff" * 8 + b"text", 0)
    os.close(descriptor)
    assert output.read().startswith("text")
    output.close()


def test_nobody_can_cut_the_memory_off_under_its_reader() -> None:
    descriptor = SharedOutput.allocate()
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
