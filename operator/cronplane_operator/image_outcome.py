"""What became of an attempt whose body was a container: its Job's condition, its exit code and its last words say it.

The last words are what the container wrote to `/dev/termination-log`, 4 KiB at most (Kubernetes documentation,
"Determine the Reason for Pod Failure"). They are kept with the run, and told nowhere else.
"""

import json
from collections.abc import Sequence
from uuid import UUID

import orjson

from cronplane_core.kubernetes_client import Body
from cronplane_core.run_states import AttemptEnd
from cronplane_core.run_transitions import FinishedAttempt
from cronplane_entries.invocation import ResultInvalidError, encode_result
from cronplane_operator import pod_outcome
from cronplane_operator.worker_protocol import MAXIMUM_MESSAGE_CHARACTERS, ErrorRecord, storable


def finished(nonce: UUID, job: Body, pods: Sequence[Body]) -> FinishedAttempt:
    """Say how an attempt ended whose Job is over."""
    ended, words = pod_outcome.ended(job, pods, idle_code=None), _last_words(pods)
    if ended.end is AttemptEnd.COMPLETED:
        return FinishedAttempt(
            nonce=nonce,
            ended=ended._replace(message="The container ended with exit code 0."),
            result_json=_result(words),
        )
    error = ErrorRecord(type=ended.reason, message=storable(words, longest=MAXIMUM_MESSAGE_CHARACTERS), traceback="")
    is_told = ended.end is AttemptEnd.ERROR and words
    return FinishedAttempt(nonce=nonce, ended=ended, error_json=orjson.dumps(error).decode() if is_told else None)


def _last_words(pods: Sequence[Body]) -> str:
    return next((str(each["message"]) for each in pod_outcome.terminations(pods) if each.get("message")), "")


def _result(words: str) -> str | None:
    """Give the result that the last words are: themselves if they are a JSON object, else one that holds them."""
    if not words:
        return None
    in_words = encode_result({"message": storable(words, longest=len(words))})
    try:
        # Of the word `null` nothing would be left.
        return encode_result(json.loads(words)) or in_words
    except (ValueError, RecursionError, ResultInvalidError):
        return in_words
