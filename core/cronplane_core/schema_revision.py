"""Which revision of the schema this version needs, and whether it may serve with the one that it finds.

Revisions only ever add to what older code uses, until one says otherwise: it then writes into `schema_compatibility`
the oldest revision whose code may still serve. So old and new replicas run beside each other while they roll, a
rollback takes back code and never the schema, and code that is too old stays unready rather than guess.
"""

from dataclasses import dataclass

# The newest revision of this version's migrations, which are installed only where they run.
REVISION = "0009"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """What a database says of its schema: the revision that it is at, and the oldest whose code may serve with it.

    Either is None where the database does not say, as before any migration.
    """

    revision: str | None
    oldest_code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What keeps a process from serving, in a sentence, or what is to be told although it may; None for neither."""

    obstacle: str | None = None
    notice: str | None = None


def judge(state: SchemaState, *, code: str = REVISION) -> Readiness:
    """Say whether the code of a revision may serve with a schema. Revisions sort as text."""
    if state.revision is None:
        return Readiness(obstacle="The database has no schema yet: run `cronplane migrate` as its owner")
    if state.revision < code:
        return Readiness(
            obstacle=f"The schema is at revision {state.revision}, and this version needs {code}: "
            "run `cronplane migrate` of this version as the database's owner"
        )
    if state.oldest_code is not None and state.oldest_code > code:
        return Readiness(
            obstacle=f"The schema is at revision {state.revision}, with which no code older than revision "
            f"{state.oldest_code} may serve, and this version is {code}: install a newer version"
        )
    if state.revision > code:
        return Readiness(
            notice=f"The schema is at revision {state.revision}, newer than this version's {code}, "
            "and compatible with it: this version serves"
        )
    return Readiness()
