"""Calling an entry's functions: what it accepts, refuses, raises and returns."""

import asyncio
import json
import math
from collections.abc import Awaitable
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, SecretStr, computed_field, field_validator

from cronplane_entries import dummy_print, invocation
from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    Organization,
    RegistrationContext,
    RegistrationRefusedError,
    Services,
    User,
)
from cronplane_entries.invocation import (
    MAXIMUM_RESULT_BYTES,
    EntryContractError,
    PayloadInvalidError,
    ResultInvalidError,
    encode_result,
    execute,
    load_execution_payload,
    register,
    validate_execution,
)

CONTEXT = RegistrationContext(
    organization=Organization(id=uuid4(), name="acme"),
    user=User(id="key:1", name="somebody"),
    cron_id=uuid4(),
    services=Services(),
)
SECRET = "a-secret-that-nobody-may-read"


class Asked(BaseUserPayload):
    identity: UUID | None = None
    number: int = 0
    text: str = ""

    @field_validator("text")
    @classmethod
    def not_forbidden(cls, value: str) -> str:
        if value == SECRET:
            raise ValueError("this text is forbidden")
        return value


class Kept(BaseExecutionPayload):
    identity: UUID | None
    number: int


def keep(payload: Asked, *, context: RegistrationContext) -> Kept:
    return Kept(identity=payload.identity, number=payload.number)


async def keep_async(payload: Asked, *, context: RegistrationContext) -> Kept:
    return keep(payload, context=context)


SPEC: CronEntrySpec[Any, Any] = CronEntrySpec(
    user_payload_model=Asked,
    execution_payload_model=Kept,
    registration_validator=keep,
    execution_validator=lambda payload, **_: None,
    executor=lambda payload, **_: {"number": payload.number},
)


@pytest.mark.parametrize("validator", [keep, keep_async])
async def test_a_payload_is_read_as_json_is_and_nothing_is_coerced(validator: Any) -> None:
    identity = uuid4()
    spec = replace(SPEC, registration_validator=validator)
    found = await register(spec, payload={"identity": str(identity), "number": 2**53 + 1}, context=CONTEXT)
    assert found.user_payload == {"identity": str(identity), "number": 2**53 + 1, "text": ""}
    assert found.execution_payload == {"identity": str(identity), "number": 2**53 + 1}
    with pytest.raises(PayloadInvalidError) as refused:
        await register(spec, payload={"number": "1"}, context=CONTEXT)
    assert [error.path for error in refused.value.errors] == [("number",)]


async def test_no_refusal_repeats_what_was_sent() -> None:
    for payload in ({"text": SECRET}, {"number": SECRET}, {"unknown": SECRET}, {"identity": SECRET}):
        with pytest.raises(PayloadInvalidError) as refused:
            await register(SPEC, payload=payload, context=CONTEXT)
        assert SECRET not in str(refused.value)


async def test_a_validator_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def think_forever(payload: Asked, *, context: RegistrationContext) -> Kept:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(invocation, "VALIDATOR_SECONDS", 0.01)
    with pytest.raises(EntryContractError, match=r"took more than 0\.01 s"):
        await register(replace(SPEC, registration_validator=think_forever), payload={}, context=CONTEXT)


async def test_a_time_out_of_the_validators_own_is_a_failure_of_its_own() -> None:
    async def time_out(payload: Asked, *, context: RegistrationContext) -> Kept:
        raise TimeoutError

    with pytest.raises(EntryContractError, match="failed with TimeoutError"):
        await register(replace(SPEC, registration_validator=time_out), payload={}, context=CONTEXT)


async def test_a_validator_refuses_with_or_without_a_path() -> None:
    def refuse(payload: Asked, *, context: RegistrationContext) -> Kept:
        raise RegistrationRefusedError("not this one", field=("number",))

    def fail(payload: Asked, *, context: RegistrationContext) -> Kept:
        raise ValueError("nor this one")

    for validator, path, message in ((refuse, ("number",), "not this one"), (fail, (), "nor this one")):
        with pytest.raises(PayloadInvalidError) as refused:
            await register(replace(SPEC, registration_validator=validator), payload={}, context=CONTEXT)
        [error] = refused.value.errors
        assert (error.path, error.message) == (path, message)


async def test_a_validator_that_breaks_its_contract_is_told_from_a_payload_that_is_wrong() -> None:
    def wrong(payload: Asked, **_: object) -> Any:
        return {"number": 1}

    def broken(payload: Asked, **_: object) -> Kept:
        raise KeyError(SECRET)

    for validator in (wrong, broken):
        with pytest.raises(EntryContractError) as refused:
            await register(replace(SPEC, registration_validator=validator), payload={}, context=CONTEXT)
        assert SECRET not in str(refused.value)


async def test_a_sync_validator_holds_up_nobody_else() -> None:
    elsewhere = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_somebody_else(payload: Asked, *, context: RegistrationContext) -> Kept:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(elsewhere.wait(), 10), loop).result()
        return keep(payload, context=context)

    registering = asyncio.create_task(
        register(replace(SPEC, registration_validator=wait_for_somebody_else), payload={}, context=CONTEXT)
    )
    loop.call_soon(elsewhere.set)
    await registering


def test_a_stored_payload_that_the_model_no_longer_takes_is_refused() -> None:
    assert load_execution_payload(SPEC, '{"identity": null, "number": 3}') == Kept(identity=None, number=3)
    with pytest.raises(PayloadInvalidError):
        load_execution_payload(SPEC, '{"identity": null}')


async def _async_result(payload: Any, **_: object) -> dict[str, object]:
    return {"number": payload.number}


@pytest.mark.parametrize("executor", [SPEC.executor, _async_result])
def test_sync_and_async_executors_are_alike(executor: Any) -> None:
    def run(awaitable: Awaitable[object]) -> object:
        async def awaited() -> object:
            return await awaitable

        return asyncio.run(awaited())

    context: Any = None
    payload = Kept(identity=None, number=7)
    spec = replace(SPEC, executor=executor)
    validate_execution(spec, payload=payload, context=context, run_until_complete=run)
    assert execute(spec, payload=payload, context=context, run_until_complete=run) == {"number": 7}


@pytest.mark.parametrize(
    "result",
    [
        [1],
        "text",
        {"a": math.nan},
        {"a": math.inf},
        {"a": "\0"},
        {"a\0": 1},
        {"a": "\ud800"},
        {"a": object()},
        {"a": b"bytes"},
        {"a": "x" * MAXIMUM_RESULT_BYTES},
    ],
)
def test_a_result_that_cannot_be_kept_is_refused(result: Any) -> None:
    with pytest.raises(ResultInvalidError):
        encode_result(result)


def test_a_result_is_kept_as_it_is() -> None:
    assert encode_result(None) is None
    assert encode_result({"é": 2**53 + 1, "text": "\\u0000"}) == '{"é":9007199254740993,"text":"\\\\u0000"}'


async def test_dummy_print_refuses_a_blank_message_and_remembers_who_registered() -> None:
    spec: Any = dummy_print.spec
    found = await register(spec, payload={"message": "hi"}, context=CONTEXT)
    assert found.execution_payload == {
        "message": "hi",
        "error_rate": 0.0,
        "user_id": "key:1",
        "organization_id": str(CONTEXT.organization.id),
    }
    refused: list[dict[str, Any]] = [{"message": " \n"}, {}, {"message": "x", "error_rate": 1.5}]
    for payload in refused:
        with pytest.raises(PayloadInvalidError):
            await register(spec, payload=payload, context=CONTEXT)


def test_dummy_print_prints_or_fails_at_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    class Context:
        attempt = 1

        class run:  # noqa: N801
            id = 1

        class log:  # noqa: N801
            debug = staticmethod(lambda *_: None)

    context: Any = Context()
    values: dict[str, Any] = {"message": "hi", "user_id": "key:1", "organization_id": uuid4()}
    assert dummy_print.execute(dummy_print.ExecutionPayload(error_rate=0, **values), context=context) == {
        "printed_characters": 2
    }
    assert capsys.readouterr().out == "hi\n"
    with pytest.raises(dummy_print.DummyPrintError):
        dummy_print.execute(dummy_print.ExecutionPayload(error_rate=1, **values), context=context)


HANG_GUARD = 30.0


def nested(depth: int) -> dict[str, Any]:
    """Give an object of this depth."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


async def attempt(validator: Any, *, model: type[BaseExecutionPayload] = Kept, **payload: Any) -> Any:
    """Register with another validator; one that would hang fails instead."""
    spec = replace(SPEC, registration_validator=validator, execution_payload_model=model)
    async with asyncio.timeout(HANG_GUARD):
        return await register(spec, payload=payload, context=CONTEXT)


def raising(error: BaseException) -> Any:
    def validate(payload: Asked, **_: object) -> Kept:
        raise error

    return validate


def raising_async(error: BaseException) -> Any:
    async def validate(payload: Asked, **_: object) -> Kept:
        raise error

    return validate


@pytest.mark.parametrize("raise_it", [raising, raising_async])
@pytest.mark.parametrize("error", [StopIteration(SECRET), SystemExit(SECRET), RuntimeError(SECRET), RecursionError()])
async def test_whatever_a_validator_raises_is_an_answer_and_neither_hangs_nor_ends_the_process(
    raise_it: Any, error: BaseException
) -> None:
    with pytest.raises(EntryContractError) as caught:
        await attempt(raise_it(error))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("error", [AssertionError(), ValueError(), RegistrationRefusedError("")])
async def test_a_refusal_without_words_gets_some(error: Exception) -> None:
    with pytest.raises(PayloadInvalidError) as caught:
        await attempt(raising(error))
    assert [(each.message, each.type) for each in caught.value.errors] == [
        ("the entry refuses this payload", "refused")
    ]


async def test_an_execution_payload_is_kept_under_the_names_that_it_is_read_by() -> None:
    class Named(BaseExecutionPayload):
        owner: UUID = Field(alias="ownedBy")

        @computed_field
        def computed(self) -> str:
            return "not to be read again"

    spec = replace(SPEC, execution_payload_model=Named)
    found = await attempt(lambda _, **__: Named(ownedBy=UUID(int=1)), model=Named)
    assert found.execution_payload == {"ownedBy": str(UUID(int=1))}
    assert load_execution_payload(spec, json.dumps(found.execution_payload)) == Named(ownedBy=UUID(int=1))


class Anything(BaseExecutionPayload):
    value: Any = None
    secret: SecretStr = SecretStr("")
    number: float = 0.0


class More(Anything):
    more: str = SECRET


@pytest.mark.parametrize(
    "payload",
    [
        Anything(secret=SecretStr(SECRET)),
        Anything(value=(SECRET,)),
        Anything(value={SECRET}),
        Anything(value=object()),
        Anything(value=b"\xff"),
        Anything.model_construct(number=cast("Any", SECRET)),
        More(),
    ],
)
async def test_what_would_not_come_back_from_json_is_found_at_registration(payload: Anything) -> None:
    with pytest.raises(EntryContractError) as caught:
        await attempt(lambda _, **__: payload, model=Anything)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", ["a\0", "\ud800", math.nan, nested(65), ["x" * 200_000]])
async def test_what_the_database_would_refuse_is_refused_before(value: Any) -> None:
    with pytest.raises((PayloadInvalidError, EntryContractError)):
        await attempt(lambda _, **__: Anything(value=value), model=Anything)


async def test_a_payload_is_measured_in_the_bytes_that_are_stored() -> None:
    found = await attempt(lambda _, **__: Anything(value="👋" * 30_000), model=Anything)
    assert found.execution_payload["value"] == "👋" * 30_000


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Pets(BaseUserPayload):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]


async def test_a_wrong_tag_is_told_what_it_may_be_and_not_what_it_was() -> None:
    spec = replace(SPEC, user_payload_model=Pets)
    with pytest.raises(PayloadInvalidError) as caught:
        await register(spec, payload={"pets": [{"kind": SECRET}]}, context=CONTEXT)
    [error] = caught.value.errors
    assert (error.path, error.message) == (("pets", 0), "'kind' is none of 'cat', 'dog'")


async def test_an_error_that_is_logged_with_its_cause_repeats_no_value() -> None:
    with pytest.raises(PayloadInvalidError) as caught:
        await attempt(keep, number=SECRET, identity=SECRET)
    assert SECRET not in str(caught.value.__cause__)


async def test_of_thousands_of_errors_a_hundred_are_told() -> None:
    with pytest.raises(PayloadInvalidError) as caught:
        await register(replace(SPEC, user_payload_model=Pets), payload={"pets": [1] * 5000}, context=CONTEXT)
    assert len(caught.value.errors) == 100


def test_a_result_may_be_nested_as_deep_as_a_request_and_no_deeper() -> None:
    assert encode_result(nested(64)) == json.dumps(nested(64), separators=(",", ":"))
    for depth in (65, 500, 100_000):
        with pytest.raises(ResultInvalidError):
            encode_result(nested(depth))


def test_a_wide_result_is_not_a_deep_one() -> None:
    assert encode_result({"rows": [[]] * 1000}) == '{"rows":[' + ",".join(["[]"] * 1000) + "]}"


def test_any_mapping_is_a_result() -> None:
    assert encode_result(MappingProxyType({"a": 1})) == '{"a":1}'


def test_a_result_may_fill_its_room_to_the_last_byte() -> None:
    room = MAXIMUM_RESULT_BYTES - len('{"a":""}')
    assert encode_result({"a": "x" * room}) is not None
    with pytest.raises(ResultInvalidError, match=f"more than {MAXIMUM_RESULT_BYTES}"):
        encode_result({"a": "x" * room + "x"})
