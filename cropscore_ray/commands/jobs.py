"""The commands that send others to a cluster: `submit`, and `jobs` to look after them."""
# ruff: noqa: D301 (\b is the backspace with which click keeps an example's lines apart)

import json
import secrets
import sys
from typing import Any

import click

from cropscore_ray.commands.options import json_option, together
from cropscore_ray.terminal.tables import Table, show

_to_cluster = together(
    click.option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, or its name; else RAY_API_SERVER_ADDRESS, "
        "RAY_ADDRESS if it is a dashboard's, or the cluster of `cropscore cluster use`.",
    ),
    click.option(
        "--insecure", is_flag=True, help="Accept a cluster elsewhere that asks for no token."
    ),
)


def _connect(address: str | None, insecure: bool) -> Any:
    from cropscore_ray.clusters import contexts
    from cropscore_ray.clusters.submission import Cluster

    token = contexts.token(address)
    return Cluster(contexts.address(address), token=token, insecure=insecure)


@click.command(context_settings={"ignore_unknown_options": True})
@_to_cluster
@click.option("--id", "job_id", metavar="ID", help="The job's id; a second time it is attached to.")
@click.option("--wait", is_flag=True, help="Show its log, and end with its exit status.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(
    address: str | None,
    insecure: bool,
    job_id: str | None,
    wait: bool,
    command: tuple[str, ...],
) -> None:
    """Run a cropscore command on a Ray cluster.

    The code that is installed here goes along. Images, model and results must lie where the
    cluster's nodes reach them: on s3://, or on a disk that they share.

    \b
    Example:
        cropscore submit --wait -- localize s3://b/photos --model s3://b/model --out s3://b/run
    """
    job_id = job_id or f"cropscore-{command[0]}-{secrets.token_hex(4)}"
    cluster = _connect(address, insecure)
    is_new = cluster.submit(list(command), job_id)
    click.echo(f"{'submitted' if is_new else 'submitted before:'} {job_id}", err=True)
    if not wait:
        click.echo(job_id)
        return
    sys.exit(_follow(cluster, job_id))


def _follow(cluster: Any, job_id: str) -> int:
    try:
        status: int = cluster.follow(job_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"\n{job_id} goes on; cropscore jobs logs -f {job_id}, or stop", err=True)
        return 130
    return status


@click.group()
def jobs() -> None:
    """Look after the jobs of a cluster.

    \b
    Example:
        cropscore jobs list
    """


@jobs.command("list")
@_to_cluster
@json_option
def list_jobs(address: str | None, insecure: bool, as_json: bool) -> None:
    """List the jobs, the latest first.

    \b
    Example:
        cropscore jobs list --json
    """
    from cropscore_ray.clusters.submission import describe

    described = [describe(job) for job in _connect(address, insecure).jobs()]
    rows = [(job["id"], job["status"], job["started_at"] or "") for job in described]
    _show(described, Table(rows=rows, columns=("<40", "<10", "<26"), gap=" "), as_json)


@jobs.command()
@_to_cluster
@json_option
@click.argument("job_id")
def status(address: str | None, insecure: bool, as_json: bool, job_id: str) -> None:
    """Tell how a job is.

    \b
    Example:
        cropscore jobs status nightly
    """
    from cropscore_ray.clusters.submission import describe

    described = describe(_connect(address, insecure).get(job_id))
    rows = [(name, str(value)) for name, value in described.items() if value is not None]
    _show(described, Table(rows=rows, columns=("<12", ""), gap=" "), as_json)


def _show(described: Any, table: Table, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(described, indent=2))
    elif table.rows:
        show(table)


@jobs.command()
@_to_cluster
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends, with its status.")
@json_option
@click.argument("job_id")
def logs(address: str | None, insecure: bool, follow: bool, as_json: bool, job_id: str) -> None:
    """Print what a job has printed.

    \b
    Example:
        cropscore jobs logs -f nightly
    """
    cluster = _connect(address, insecure)
    if follow and not as_json:
        sys.exit(_follow(cluster, job_id))
    text = cluster.logs(job_id)
    click.echo(json.dumps({"id": job_id, "log": text}) if as_json else text, nl=as_json)


@jobs.command()
@_to_cluster
@json_option
@click.argument("job_id")
def stop(address: str | None, insecure: bool, as_json: bool, job_id: str) -> None:
    """Stop a job. What it has written stays; submitted again, it goes on.

    \b
    Example:
        cropscore jobs stop nightly
    """
    was_running = _connect(address, insecure).stop(job_id)
    message = f"{job_id} {'is being stopped' if was_running else 'had ended'}"
    answer = {"id": job_id, "was_running": was_running}
    click.echo(json.dumps(answer) if as_json else message)
