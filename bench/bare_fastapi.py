"""The yardstick of a registration: a bare FastAPI handler with one INSERT, and nothing that Cronplane adds.

No key is asked for, nothing is judged but the types of the body, and one row goes into our own table, as anybody would
write it from FastAPI's and SQLAlchemy's tutorials. Run as a program, with the port and the address of the database in
the environment, it serves as `cronplane api` does: uvicorn, one process, the same loop and implementation of HTTP, and
a log line per request.
"""

import os
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import create_async_engine

from cronplane_core.database import parse_url
from cronplane_core.tables import cron_jobs

POOL_SIZE = 10


class CronIn(BaseModel):
    """The fields that our own registration takes."""

    name: str
    cron_expr: str
    tz: str
    entrypoint: str
    payload: dict[str, Any]
    enabled: bool = True
    overlap: str = "skip"
    catchup: str = "latest"
    catchup_window: timedelta | None = None
    timeout: timedelta = timedelta(hours=1)
    max_attempts: int = 1
    jitter: timedelta = timedelta(0)
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    max_runs: int | None = None


class CronOut(BaseModel):
    """What the client is told."""

    id: UUID
    name: str
    created_at: datetime


engine = create_async_engine(parse_url(os.environ["CRONPLANE_DATABASE_URL"]), pool_size=POOL_SIZE, max_overflow=0)
_INSERT = insert(cron_jobs).returning(cron_jobs.c.id, cron_jobs.c.created_at)
application = FastAPI()


@application.post("/crons/{organization_id}", status_code=201)
async def create_cron(organization_id: UUID, body: CronIn) -> CronOut:
    """Insert a cron."""
    values = {
        **body.model_dump(exclude={"payload"}),
        "organization_id": organization_id,
        "user_payload": body.payload,
        "execution_payload": body.payload,
        "created_by": "bench",
        "updated_by": "bench",
    }
    async with engine.begin() as connection:
        row = (await connection.execute(_INSERT, values)).one()
    return CronOut(id=row.id, name=body.name, created_at=row.created_at)


if __name__ == "__main__":
    uvicorn.run(application, port=int(os.environ["CRONPLANE_PORT"]), http="h11")
