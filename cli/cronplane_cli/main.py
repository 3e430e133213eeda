"""The command line: one command per role, and the administrator's few.

Each command imports what it runs only when it is called, so that an installation needs just the extras of its roles.
"""

import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from cronplane_cli.administration import Administration
from cronplane_cli.errors import CommandError
from cronplane_core import __version__
from cronplane_core.errors import CronplaneError

app = typer.Typer(
    name="cronplane",
    help="A control plane for typed cron jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
organizations = typer.Typer(help="Make and list organizations.", no_args_is_help=True)
keys = typer.Typer(help="Make, list and revoke an organization's API keys.", no_args_is_help=True)
imports = typer.Typer(help="Bring jobs over from other schedulers.", no_args_is_help=True)
app.add_typer(organizations, name="organizations")
app.add_typer(keys, name="keys")
app.add_typer(imports, name="import")

ServerUrl = Annotated[str, typer.Option("--url", envvar="CRONPLANE_URL", help="Where the API is.")]
Credential = Annotated[
    str,
    typer.Option(
        "--key",
        envvar=["CRONPLANE_INSTALLATION_KEY", "CRONPLANE_API_KEY"],
        show_envvar=True,
        help="The installation key; an organization's admin key will do for its own keys.",
        prompt=True,
        hide_input=True,
    ),
]
OrganizationId = Annotated[UUID, typer.Argument(help="The organization's id.")]
ManifestFile = Annotated[
    str | None,
    typer.Option("--file", "-f", help="Manifests in YAML or JSON, `-` for standard input; else the cluster's."),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        envvar=["CRONPLANE_KUBECONFIG", "KUBECONFIG"], help="How to reach the cluster; else as the pod that this is."
    ),
]
DefaultZone = Annotated[
    str, typer.Option(help="The zone of the kube-controller-manager, meant where a CronJob names none.")
]
AcceptedFields = Annotated[
    list[str] | None, typer.Option("--accept", help="A field that may be lost, by its path; can be repeated.")
]
ImportingOrganization = Annotated[
    UUID | None, typer.Option(help="The organization's id; without it only the CronJobs are looked at.")
]
EditorKey = Annotated[
    str | None,
    typer.Option("--key", envvar="CRONPLANE_API_KEY", show_envvar=True, help="A key of the organization's, an editor."),
]
_MOST_DIGITS = 10
# As shells tell of a program that was ended by a signal.
_SIGNALLED = 128
_DEFAULT_URL = "http://127.0.0.1:8080"


def main() -> None:
    """Run the command; what it refuses is said in a line, with status 1.

    SIGTERM ends it, also as the first process of a container, for which the kernel does nothing on its own (signal(7));
    roles that drain have handlers of their own.
    """
    signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except CronplaneError as error:
        typer.echo(f"cronplane: {error}", err=True)
        sys.exit(1)


def _end(number: int, _: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(_SIGNALLED + number)


@app.callback(invoke_without_command=True)
def version(
    *, show: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False
) -> None:
    """A control plane for typed cron jobs."""
    if show:
        typer.echo(f"cronplane {__version__}")
        raise typer.Exit


@app.command()
def dev(
    *,
    data_directory: Annotated[
        Path, typer.Option("--data-dir", help="Where the embedded PostgreSQL and the keys are kept.")
    ] = Path(".cronplane"),
    database_url: Annotated[
        str | None, typer.Option("--database-url", help="Use this PostgreSQL, as its owner, and embed none.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
) -> None:
    """Run everything in one process: PostgreSQL, migrations, API and runner."""
    one_process = _role("cronplane_cli.one_process", extra="dev")
    one_process.serve(
        one_process.Options(data_directory=data_directory, database_url=database_url, host=host, port=port)
    )


@app.command()
def api() -> None:
    """Serve the API; settings come from the environment."""
    _role("cronplane_cli.api_role", extra="api").serve()


@app.command()
def runner() -> None:
    """Run the runner; any number may stand by, and one fires."""
    _role("cronplane_cli.runner_role", extra="runner").serve()


@app.command()
def operator() -> None:
    """Run the runner in a cluster, with everything that Kubernetes has to do with it."""
    _role("cronplane_cli.operator_role", extra="operator").serve()


@app.command()
def attempt() -> None:
    """Run one attempt, as the process of a pod that the operator has made."""
    raise typer.Exit(_role("cronplane_cli.attempt_role", extra="operator").serve())


@app.command()
def crd() -> None:
    """Print the definitions of the resources Cron and Runner, for `kubectl apply -f -`."""
    typer.echo(_role("cronplane_cli.resource_definitions_page", extra="operator").page(), nl=False)


@app.command()
def migrate(
    *,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds until the database has to answer, at most.")
    ] = 0,
) -> None:
    """Bring the database up to this version, as the role that owns the schema, and make the organizations declared."""
    for sentence in _role("cronplane_cli.migration_role", extra="migrate").run(wait=timedelta(seconds=wait)):
        typer.echo(sentence)


@app.command()
def postgres(
    *, check: Annotated[bool, typer.Option("--check", help="Only tell whether the one that runs here serves.")] = False
) -> None:
    """Run a PostgreSQL for trying an installation out, with passwords from the environment."""
    role = _role("cronplane_cli.postgres_role", extra="postgres")
    if check:
        role.check()
    else:
        role.serve()


@app.command()
def credentials() -> None:
    """Make the Secrets of an installation in a cluster, and add what they lack; nothing in them is ever changed."""
    for sentence in _role("cronplane_cli.credentials_role", extra="operator").run():
        typer.echo(sentence)


@app.command()
def selftest() -> None:
    """Try an installation in a cluster: a cron is registered, run, looked at and removed."""
    for sentence in _role("cronplane_cli.selftest_role", extra="operator").run():
        typer.echo(sentence)


@app.command()
def uninstall() -> None:
    """Remove from a cluster what a stopped installation has made there: mirrors, its Runner, Jobs of runs."""
    removed = _role("cronplane_cli.uninstall_role", extra="operator").run()
    typer.echo(f"Removed: {removed.mirrors} mirrors, {removed.jobs} Jobs, the Runner. Crons kept: {removed.kept}.")


@app.command()
def check(
    *, as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line instead of a sentence.")] = False
) -> None:
    """Find every fire that is not accounted for exactly once: a line each, status 1 if there is one, 2 on trouble."""
    try:
        violations = import_module("cronplane_cli.check_role").run(as_json=as_json)
    except CronplaneError as error:
        typer.echo(f"cronplane: {error}", err=True)
        raise typer.Exit(2) from error
    if violations:
        raise typer.Exit(1)


@organizations.command("create")
def create_organization(name: str, *, url: ServerUrl = _DEFAULT_URL, key: Credential) -> None:
    """Make an organization and show its id."""
    organization = Administration(url=url, key=key).create_organization(name=name)
    typer.echo(f"{organization['id']}  {organization['name']}")


@organizations.command("list")
def list_organizations(*, url: ServerUrl = _DEFAULT_URL, key: Credential) -> None:
    """List every organization."""
    for organization in Administration(url=url, key=key).list_organizations():
        typer.echo(f"{organization['id']}  {organization['state']:<9}  {organization['name']}")


@organizations.command("show")
def show_organization(organization: OrganizationId, *, url: ServerUrl = _DEFAULT_URL, key: Credential) -> None:
    """Show what an organization may use, and how much of it."""
    _show(Administration(url=url, key=key).read_organization(organization_id=organization))


@organizations.command("limit")
def limit_organization(
    organization: OrganizationId,
    *,
    entries: Annotated[
        list[str] | None, typer.Option("--entry", help="An entry that it may use, and no other; can be repeated.")
    ] = None,
    every_entry: Annotated[bool, typer.Option("--every-entry", help="It may use every entry.")] = False,
    crons: Annotated[str | None, typer.Option(help="How many crons it may have, or `default`.")] = None,
    triggers_per_minute: Annotated[
        str | None, typer.Option(help="How many runs it may trigger in a minute, or `default`.")
    ] = None,
    url: ServerUrl = _DEFAULT_URL,
    key: Credential,
) -> None:
    """Say what an organization may use, and how much of it; what is not named stays as it is."""
    if entries and every_entry:
        raise CommandError("--entry and --every-entry exclude each other; give one of them")
    changes: dict[str, Any] = {} if not entries else {"entrypoints": entries}
    if every_entry:
        changes["entrypoints"] = None
    quotas = {"cron_quota": crons, "triggers_per_minute": triggers_per_minute}
    changes |= {name: _quota(text) for name, text in quotas.items() if text is not None}
    _show(Administration(url=url, key=key).limit_organization(organization_id=organization, changes=changes))


def _quota(text: str) -> int | None:
    if text == "default":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise CommandError(f"{text!r} is neither a number nor `default`")
    return int(text)


def _show(organization: dict[str, Any]) -> None:
    entries = organization["entrypoints"]
    quota, triggers = organization["cron_quota"], organization["triggers_per_minute"]
    typer.echo(
        f"{organization['id']}  {organization['name']}\n"
        f"  entries              {'every one' if entries is None else ', '.join(entries) or 'none'}\n"
        f"  crons                {organization['crons']} of {'the default' if quota is None else quota}\n"
        f"  triggers per minute  {'the default' if triggers is None else triggers}"
    )


@keys.command("create")
def create_key(
    organization: OrganizationId,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[str, typer.Argument(help="viewer, operator, editor or admin.")],
    *,
    url: ServerUrl = _DEFAULT_URL,
    key: Credential,
) -> None:
    """Make a key and show it; it cannot be shown again."""
    created = Administration(url=url, key=key).create_key(organization_id=organization, name=name, role=role)
    typer.echo(created["key"])


@keys.command("list")
def list_keys(organization: OrganizationId, *, url: ServerUrl = _DEFAULT_URL, key: Credential) -> None:
    """List an organization's keys, revoked ones included."""
    for known in Administration(url=url, key=key).list_keys(organization_id=organization):
        state = "revoked" if known["revoked_at"] else "good"
        typer.echo(f"{known['id']}  {known['role']:<8}  {state:<7}  {known['name']}")


@keys.command("revoke")
def revoke_key(
    organization: OrganizationId,
    key_id: Annotated[UUID, typer.Argument(help="The key's id.")],
    *,
    url: ServerUrl = _DEFAULT_URL,
    key: Credential,
) -> None:
    """Revoke a key; requests with it are refused from now on."""
    Administration(url=url, key=key).revoke_key(organization_id=organization, key_id=key_id)
    typer.echo("Revoked.")


@imports.command("cronjobs")
def import_cronjobs(
    *,
    file: ManifestFile = None,
    kubeconfig: Kubeconfig = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only CronJobs of this one.")] = None,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Only CronJobs with these labels.")] = "",
    default_zone: DefaultZone = "UTC",
    paused: Annotated[bool, typer.Option("--paused", help="Register everything paused.")] = False,
    accept: AcceptedFields = None,
    partial: Annotated[bool, typer.Option("--partial", help="Register also what loses something.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Register; without it nothing is written.")] = False,
    organization: ImportingOrganization = None,
    url: ServerUrl = _DEFAULT_URL,
    key: EditorKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line and CronJob.")] = False,
) -> None:
    """Move CronJobs of Kubernetes over: status 1 if one does not carry over, 2 on trouble."""
    cronjob_import = import_module("cronplane_cli.cronjob_import")
    options = cronjob_import.ImportOptions(
        default_zone=default_zone,
        is_paused=paused,
        is_applied=apply,
        accepted=None if partial else frozenset(accept or ()),
    )
    try:
        crons = cronjob_import.connect(organization, url=url, key=key, is_needed=apply)
        bodies = _cronjobs(file, kubeconfig=kubeconfig, namespace=namespace, selector=selector)
        # Schedules are compared from about now on; nothing fires by this clock.
        all_well = cronjob_import.run(bodies, crons=crons, options=options, as_json=as_json, now=datetime.now(UTC))
    except CronplaneError as error:
        typer.echo(f"cronplane: {error}", err=True)
        raise typer.Exit(2) from error
    if not all_well:
        raise typer.Exit(1)


def _cronjobs(
    file: str | None, *, kubeconfig: Path | None, namespace: str | None, selector: str
) -> Sequence[dict[str, Any]]:
    if file is None:
        cluster = _role("cronplane_cli.cronjob_cluster", extra="operator")
        found: list[dict[str, Any]] = cluster.read(kubeconfig=kubeconfig, namespace=namespace, selector=selector)
        return found
    if namespace or selector:
        raise CommandError("--namespace and --selector choose in a cluster; leave them out with --file")
    manifests = import_module("cronplane_cli.cronjob_manifests").read_file(file)
    if manifests.others:
        typer.echo(f"cronplane: {manifests.others} objects are no CronJobs of batch/v1 and were passed over", err=True)
    chosen: tuple[dict[str, Any], ...] = manifests.cronjobs
    return chosen


def _role(module: str, *, extra: str) -> Any:  # noqa: ANN401 - a module of an extra that may be absent
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("cronplane"):
            raise
        raise CronplaneError(f"{error.name} is not installed; type: pip install 'cronplane[{extra}]'") from error


if __name__ == "__main__":
    main()
