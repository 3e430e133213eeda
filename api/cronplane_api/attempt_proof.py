"""How a process proves to be one attempt of one run.

Proof by a token that we have signed is here; proof by the account of a pod is apart (`token_review_proof`), since it
needs a cluster.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.signed_tokens import Purpose, TokenClaims, TokenInvalidError, TokenSigner

# A token outlives the heartbeats that renew it by enough for one that is late.
_TOKEN_LIFE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenAttempt:
    """Which attempt a caller has proven to be. `organization_id` is None if the proof does not tell whose it is."""

    organization_id: UUID | None
    run_id: UUID
    number: int


class AttemptProof(Protocol):
    """One kind of proof."""

    async def prove(self, credential: str, *, run_id: UUID, number: int, now: datetime) -> UUID | None:
        """Read what a caller shows who says to be this attempt, at `now` (aware).

        Gives whose attempt it then is; None if the proof does not tell that.

        Raises:
            TokenInvalidError: it proves nothing.
            CronplaneError: nobody can tell at the moment.

        """


# Opens a kind of proof for as long as the application runs, which shares its engine.
ProofOpener = Callable[[AsyncEngine], AbstractAsyncContextManager[AttemptProof]]


class SignedTokenProof:
    """Proof by a token that we have signed: good for minutes, and renewed by each heartbeat."""

    def __init__(self, signer: TokenSigner) -> None:
        self._signer = signer

    async def prove(self, credential: str, *, run_id: UUID, number: int, now: datetime) -> UUID | None:
        """Read a token."""
        claims = self._signer.read(credential, purpose=Purpose.ATTEMPT, now=now)
        if (claims.run_id, claims.attempt) != (run_id, number):
            raise TokenInvalidError("the token is another attempt's")
        return claims.organization_id


def renewed_token(signer: TokenSigner | None, attempt: ProvenAttempt, *, now: datetime) -> str | None:
    """Give what a caller with a token of ours has to show from now on; None to any other, whose token is not ours."""
    if signer is None or attempt.organization_id is None:
        return None
    claims = TokenClaims(
        purpose=Purpose.ATTEMPT,
        organization_id=attempt.organization_id,
        run_id=attempt.run_id,
        attempt=attempt.number,
        expires_at=now + _TOKEN_LIFE,
    )
    return signer.sign(claims)


class AnyProof:
    """Proof by whichever kind accepts it."""

    def __init__(self, proofs: Sequence[AttemptProof]) -> None:
        self._proofs = proofs

    async def prove(self, credential: str, *, run_id: UUID, number: int, now: datetime) -> UUID | None:
        """Try one kind after the other."""
        for proof in self._proofs:
            try:
                return await proof.prove(credential, run_id=run_id, number=number, now=now)
            except TokenInvalidError:
                continue
        raise TokenInvalidError("no kind of proof accepts the token")
