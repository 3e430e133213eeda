"""Pages of a list by key, with cursors that say where a page ended.

A cursor is signed, and bound to the list that it came from with its filters, so that it opens nothing else.
"""

import base64
import binascii
import hashlib
import hmac
import json
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from starlette.requests import Request

from cronplane_api.errors import INVALID_CURSOR, ProblemError
from cronplane_api.guarded_route import WITHOUT_NUL
from cronplane_api.state import principal_of, state_of

Key = tuple[datetime, UUID]
Limit = Annotated[int, Query(ge=1, le=200, description="how many at most")]
Cursor = Annotated[
    str | None,
    Query(max_length=1024, pattern=WITHOUT_NUL, description="`next_cursor` of the page before; with the same filters"),
]
DEFAULT_LIMIT = 50
_SIGNATURE_BYTES = 16


def cursor_secret(installation_key: str) -> bytes:
    """Derive the secret that signs cursors, which every replica of the API shares."""
    return hmac.digest(installation_key.encode(), b"cronplane cursor v1", hashlib.sha256)


def write_cursor(request: Request, key: Key) -> str:
    """Write where a page ended."""
    text = json.dumps([key[0].isoformat(), str(key[1])]).encode()
    return _encode(_sign(request, text) + text)


def read_cursor(request: Request, cursor: str | None) -> Key | None:
    """Read where the page before ended; None for the first page.

    Raises:
        ProblemError: 400, this list with these filters never gave such a cursor.

    """
    if cursor is None:
        return None
    try:
        signed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError) as error:
        raise _invalid() from error
    # The decoder overlooks foreign characters and spare bits; one page has one cursor.
    if _encode(signed) != cursor:
        raise _invalid()
    signature, text = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _sign(request, text)):
        raise _invalid()
    instant, identity = json.loads(text)
    return datetime.fromisoformat(instant), UUID(identity)


def _encode(signed: bytes) -> str:
    return base64.urlsafe_b64encode(signed).decode().rstrip("=")


def _sign(request: Request, text: bytes) -> bytes:
    filters = sorted(item for item in request.query_params.multi_items() if item[0] not in {"cursor", "limit"})
    context = json.dumps([request.url.path, principal_of(request).scope, filters]).encode()
    digest = hmac.digest(state_of(request).cursor_secret, context + b"\0" + text, hashlib.sha256)
    return digest[:_SIGNATURE_BYTES]


def _invalid() -> ProblemError:
    return ProblemError(INVALID_CURSOR, "Take the cursor from next_cursor of this list, with the same filters")
