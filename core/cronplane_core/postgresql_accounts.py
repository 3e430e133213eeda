"""Who may use an embedded PostgreSQL over the network: the owner of Cronplane's schema and the service, by password.

The superuser has no password and is let in over the Unix socket only. Passwords are turned into SCRAM verifiers here,
before they are sent, so that PostgreSQL itself never sees one and cannot log it.
"""

from collections.abc import Mapping

import psycopg
from psycopg import sql

DATABASE = "cronplane"
OWNER_ROLE = "cronplane"
SERVICE_ROLE = "cronplane_service"
# Of the first line that fits, only the method is tried (PostgreSQL's documentation, "The pg_hba.conf File").
HOST_BASED_AUTHENTICATION = f"""\
local all all trust
host {DATABASE} {OWNER_ROLE},{SERVICE_ROLE} all scram-sha-256
"""
_RIGHTS = {OWNER_ROLE: "LOGIN CREATEROLE", SERVICE_ROLE: "LOGIN"}


def keep_accounts(address: str, *, owner_password: str, service_password: str) -> None:
    """Make both roles and the database, if they are missing, and give the roles these passwords.

    `address` is the superuser's.
    """
    with psycopg.connect(address, autocommit=True) as connection:
        _keep_roles(connection, {OWNER_ROLE: owner_password, SERVICE_ROLE: service_password})
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER_ROLE))
            )


def _keep_roles(connection: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    for role, password in passwords.items():
        exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        statement = sql.SQL("{} ROLE {} {} PASSWORD {}").format(
            sql.SQL("ALTER" if exists else "CREATE"),
            sql.Identifier(role),
            sql.SQL(_RIGHTS[role]),
            sql.Literal(verifier.decode()),
        )
        connection.execute(statement)
