"""Everything from a registration to a recorded run: organizations, keys, crons, runs, attempts, the leader's lease."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    # Volatile and unadorned on purpose: tests replace it to shift time or to speed it up.
    """
    CREATE FUNCTION scheduler.now() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT clock_timestamp()'
    """,
    "COMMENT ON FUNCTION scheduler.now() IS 'the one clock: every due-check, wait and stamp follows it'",
    # Its labels are the registered entries; the migrate command adds them, so that a new entry needs no revision.
    "CREATE TYPE scheduler.entrypoint AS ENUM ()",
    """
    CREATE TABLE scheduler.organizations (
        id uuid DEFAULT gen_random_uuid() CONSTRAINT organizations_pkey PRIMARY KEY,
        name text NOT NULL CONSTRAINT organizations_name_key UNIQUE,
        state text DEFAULT 'active' NOT NULL
            CONSTRAINT organizations_state_known CHECK (state IN ('active', 'suspended')),
        created_at timestamptz DEFAULT scheduler.now() NOT NULL
    )
    """,
    """
    CREATE TABLE scheduler.api_keys (
        id uuid DEFAULT gen_random_uuid() CONSTRAINT api_keys_pkey PRIMARY KEY,
        organization_id uuid NOT NULL
            CONSTRAINT api_keys_organization_id_fkey REFERENCES scheduler.organizations (id),
        name text NOT NULL,
        role text NOT NULL
            CONSTRAINT api_keys_role_known CHECK (role IN ('viewer', 'operator', 'editor', 'admin')),
        secret_hash bytea NOT NULL,
        created_at timestamptz DEFAULT scheduler.now() NOT NULL,
        created_by text NOT NULL,
        revoked_at timestamptz
    )
    """,
    "COMMENT ON COLUMN scheduler.api_keys.secret_hash IS 'SHA-256 of the key''s 256-bit random secret'",
    "CREATE INDEX api_keys_by_organization ON scheduler.api_keys (organization_id, created_at, id)",
    """
    CREATE TABLE scheduler.idempotency_keys (
        scope text NOT NULL,
        key text NOT NULL,
        fingerprint bytea NOT NULL,
        status integer,
        headers json,
        body json,
        created_at timestamptz DEFAULT scheduler.now() NOT NULL,
        CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)
    )
    """,
    """
    COMMENT ON COLUMN scheduler.idempotency_keys.scope
    IS 'whose key it is: an organization''s id, or ''installation'''
    """,
    "COMMENT ON COLUMN scheduler.idempotency_keys.fingerprint IS 'SHA-256 of method, path and body'",
    "CREATE INDEX idempotency_keys_by_age ON scheduler.idempotency_keys (created_at)",
    """
    CREATE TABLE scheduler.cron_jobs (
        id uuid DEFAULT gen_random_uuid() CONSTRAINT cron_jobs_pkey PRIMARY KEY,
        organization_id uuid NOT NULL
            CONSTRAINT cron_jobs_organization_id_fkey REFERENCES scheduler.organizations (id),
        name text NOT NULL,
        cron_expr text NOT NULL,
        tz text NOT NULL,
        entrypoint scheduler.entrypoint NOT NULL,
        user_payload jsonb NOT NULL,
        execution_payload jsonb NOT NULL,
        overlap text DEFAULT 'skip' NOT NULL
            CONSTRAINT cron_jobs_overlap_known
            CHECK (overlap IN ('skip', 'allow', 'queue_one', 'queue_all', 'cancel_running')),
        catchup text DEFAULT 'latest' NOT NULL
            CONSTRAINT cron_jobs_catchup_known CHECK (catchup IN ('latest', 'skip', 'all')),
        catchup_window interval,
        timeout interval NOT NULL
            CONSTRAINT cron_jobs_timeout_bounded CHECK (timeout > interval '0' AND timeout <= interval '1 year'),
        max_attempts integer DEFAULT 1 NOT NULL
            CONSTRAINT cron_jobs_max_attempts_positive CHECK (max_attempts >= 1),
        backoff_initial interval DEFAULT '10 seconds'::interval NOT NULL,
        backoff_maximum interval DEFAULT '10 minutes'::interval NOT NULL,
        jitter interval DEFAULT '0 seconds'::interval NOT NULL,
        starts_at timestamptz,
        ends_at timestamptz,
        max_runs bigint,
        enabled boolean DEFAULT true NOT NULL,
        generation bigint DEFAULT 1 NOT NULL,
        effective_from timestamptz DEFAULT scheduler.now() NOT NULL,
        source text DEFAULT 'api' NOT NULL
            CONSTRAINT cron_jobs_source_known CHECK (source IN ('api', 'kubernetes')),
        source_uid text,
        source_generation bigint,
        created_at timestamptz DEFAULT scheduler.now() NOT NULL,
        created_by text NOT NULL,
        updated_at timestamptz DEFAULT scheduler.now() NOT NULL,
        updated_by text NOT NULL,
        deleted_at timestamptz,
        deleted_by text,
        changed_by_transaction xid8 DEFAULT pg_current_xact_id() NOT NULL,
        CONSTRAINT cron_jobs_id_organization_id_key UNIQUE (id, organization_id)
    )
    """,
    "COMMENT ON COLUMN scheduler.cron_jobs.source_uid IS 'UID of the resource that defines the cron'",
    """
    COMMENT ON COLUMN scheduler.cron_jobs.source_generation
    IS 'metadata.generation of that resource, as registered'
    """,
    """
    COMMENT ON COLUMN scheduler.cron_jobs.changed_by_transaction
    IS 'kept by a trigger; the runner reads what changed since its last snapshot'
    """,
    "CREATE UNIQUE INDEX cron_jobs_name_key ON scheduler.cron_jobs (organization_id, name) WHERE deleted_at IS NULL",
    "CREATE INDEX cron_jobs_by_organization ON scheduler.cron_jobs (organization_id, created_at, id)",
    "CREATE INDEX cron_jobs_by_change ON scheduler.cron_jobs (changed_by_transaction)",
    # A trigger, not the writers, so that a change made by hand in psql reaches the runner too.
    """
    CREATE FUNCTION scheduler.stamp_changed_by_transaction() RETURNS trigger
    LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_by_transaction := pg_current_xact_id();
        RETURN NEW;
    END
    $$
    """,
    """
    CREATE TRIGGER cron_jobs_stamp_changed_by_transaction BEFORE UPDATE ON scheduler.cron_jobs
    FOR EACH ROW EXECUTE FUNCTION scheduler.stamp_changed_by_transaction()
    """,
    """
    CREATE TABLE scheduler.cron_job_versions (
        cron_id uuid NOT NULL
            CONSTRAINT cron_job_versions_cron_id_fkey REFERENCES scheduler.cron_jobs (id) ON DELETE CASCADE,
        generation bigint NOT NULL,
        effective_from timestamptz NOT NULL,
        cron_expr text NOT NULL,
        tz text NOT NULL,
        enabled boolean NOT NULL,
        overlap text DEFAULT 'skip' NOT NULL,
        catchup text DEFAULT 'latest' NOT NULL,
        catchup_window interval,
        timeout interval NOT NULL,
        max_attempts integer DEFAULT 1 NOT NULL,
        backoff_initial interval DEFAULT '10 seconds'::interval NOT NULL,
        backoff_maximum interval DEFAULT '10 minutes'::interval NOT NULL,
        jitter interval DEFAULT '0 seconds'::interval NOT NULL,
        starts_at timestamptz,
        ends_at timestamptz,
        max_runs bigint,
        CONSTRAINT cron_job_versions_pkey PRIMARY KEY (cron_id, generation)
    )
    """,
    """
    COMMENT ON COLUMN scheduler.cron_job_versions.enabled
    IS 'false from a pause to its resume, and from a deletion on'
    """,
    """
    CREATE TABLE scheduler.cron_runs (
        id uuid DEFAULT gen_random_uuid() CONSTRAINT cron_runs_pkey PRIMARY KEY,
        organization_id uuid NOT NULL,
        cron_id uuid NOT NULL,
        scheduled_for timestamptz NOT NULL,
        trigger_kind text NOT NULL
            CONSTRAINT cron_runs_trigger_kind_known CHECK (trigger_kind IN ('schedule', 'manual', 'backfill')),
        status text NOT NULL
            CONSTRAINT cron_runs_status_known
            CHECK (status IN ('queued', 'running', 'waiting', 'completed', 'error', 'timed_out', 'cancelled',
                              'skipped', 'missed', 'lost')),
        reason text NOT NULL,
        message text NOT NULL,
        execution_payload jsonb,
        result jsonb,
        error jsonb,
        attempts integer DEFAULT 0 NOT NULL,
        generation bigint NOT NULL,
        epoch bigint,
        created_at timestamptz DEFAULT scheduler.now() NOT NULL,
        created_by text,
        started_at timestamptz,
        finished_at timestamptz,
        missed_until timestamptz,
        missed_count bigint,
        CONSTRAINT cron_runs_cron_id_fkey FOREIGN KEY (cron_id, organization_id)
            REFERENCES scheduler.cron_jobs (id, organization_id) ON DELETE CASCADE,
        CONSTRAINT cron_runs_terminal_is_finished
            CHECK ((finished_at IS NULL) = (status IN ('queued', 'running', 'waiting'))),
        CONSTRAINT cron_runs_missed_has_range
            CHECK ((status = 'missed') = (missed_until IS NOT NULL AND missed_count IS NOT NULL))
    ) WITH (fillfactor = 70)
    """,
    "COMMENT ON COLUMN scheduler.cron_runs.reason IS 'a stable word in CamelCase'",
    "COMMENT ON COLUMN scheduler.cron_runs.message IS 'a sentence for people'",
    "COMMENT ON COLUMN scheduler.cron_runs.execution_payload IS 'in place of the cron''s, for this run only'",
    "COMMENT ON COLUMN scheduler.cron_runs.epoch IS 'of the leader that changed the run last'",
    "COMMENT ON COLUMN scheduler.cron_runs.created_by IS 'who triggered it; empty for the schedule'",
    """
    CREATE UNIQUE INDEX cron_runs_one_per_fire ON scheduler.cron_runs (cron_id, scheduled_for)
    WHERE trigger_kind = 'schedule'
    """,
    "CREATE INDEX cron_runs_by_cron ON scheduler.cron_runs (cron_id, scheduled_for, id)",
    # Not over `status`: an update of it could then not stay on its page (heap-only tuples), and every index would grow.
    "CREATE INDEX cron_runs_active ON scheduler.cron_runs (cron_id) WHERE finished_at IS NULL",
    """
    CREATE TABLE scheduler.cron_attempts (
        run_id uuid NOT NULL
            CONSTRAINT cron_attempts_run_id_fkey REFERENCES scheduler.cron_runs (id) ON DELETE CASCADE,
        number integer NOT NULL,
        nonce uuid NOT NULL,
        epoch bigint NOT NULL,
        location text NOT NULL,
        lease_expires_at timestamptz NOT NULL,
        started_at timestamptz DEFAULT scheduler.now() NOT NULL,
        finished_at timestamptz,
        outcome text
            CONSTRAINT cron_attempts_outcome_known
            CHECK (outcome IN ('completed', 'error', 'timed_out', 'cancelled', 'lost')),
        reason text,
        message text,
        error jsonb,
        output text,
        CONSTRAINT cron_attempts_pkey PRIMARY KEY (run_id, number),
        CONSTRAINT cron_attempts_finished_has_outcome CHECK ((outcome IS NULL) = (finished_at IS NULL))
    ) WITH (fillfactor = 70)
    """,
    "COMMENT ON COLUMN scheduler.cron_attempts.nonce IS 'proves that a finish belongs to this very attempt'",
    "COMMENT ON COLUMN scheduler.cron_attempts.location IS 'where it runs, such as the runner''s name'",
    "COMMENT ON COLUMN scheduler.cron_attempts.output IS 'what the entry printed, bounded'",
    """
    CREATE TABLE scheduler.apscheduler_jobs (
        id uuid CONSTRAINT apscheduler_jobs_pkey PRIMARY KEY
            CONSTRAINT apscheduler_jobs_id_fkey REFERENCES scheduler.cron_jobs (id) ON DELETE CASCADE,
        next_run_time timestamptz,
        generation bigint NOT NULL
    )
    """,
    """
    CREATE TABLE scheduler.leases (
        name text CONSTRAINT leases_pkey PRIMARY KEY,
        holder text NOT NULL,
        epoch bigint NOT NULL,
        expires_at timestamptz NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Create the tables; `migrate` has made the schema."""
    for statement in STATEMENTS:
        op.execute(statement)
