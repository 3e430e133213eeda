"""Finds CronJobs in manifests: YAML documents or JSON, as they lie in a repository or as kubectl gives them.

Whatever else a manifest holds is passed over, and counted. JSON needs nothing but Python; YAML needs PyYAML.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cronplane_cli.cronjob import Body
from cronplane_cli.errors import CommandError

_LISTS = {"List", "CronJobList"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """The CronJobs of a text, and how many other objects stand beside them."""

    cronjobs: tuple[Body, ...]
    others: int


def read_file(file: str) -> Manifests:
    """Find the CronJobs in a file, or for `-` in what comes by standard input.

    Raises:
        CommandError: it cannot be read, or is neither JSON nor YAML.

    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {type(error).__name__}") from error
    return read(text)


def read(text: str) -> Manifests:
    """Find the CronJobs in a text.

    Raises:
        CommandError: it is neither JSON nor YAML.

    """
    objects = list(_objects(_documents(text)))
    cronjobs = tuple(each for each in objects if _is_cronjob(each))
    return Manifests(cronjobs=cronjobs, others=len(objects) - len(cronjobs))


def _is_cronjob(found: Body) -> bool:
    return found.get("kind") == "CronJob" and found.get("apiVersion") == "batch/v1"


def _objects(documents: Iterable[Any]) -> Iterator[Body]:
    for document in documents:
        if not isinstance(document, dict):
            raise CommandError("The manifests hold something that is no object of Kubernetes")
        if document.get("kind") in _LISTS and isinstance(document.get("items"), list):
            # In a list of one kind, as the API gives it, the objects do not say what they are.
            inherited = {"apiVersion": "batch/v1", "kind": "CronJob"} if document["kind"] == "CronJobList" else {}
            yield from _objects(inherited | item if isinstance(item, dict) else item for item in document["items"])
        else:
            yield document


def _documents(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError:
        return _yaml_documents(text)


def _yaml_documents(text: str) -> list[Any]:
    try:
        yaml = import_module("yaml")
    except ModuleNotFoundError as error:
        raise CommandError("PyYAML is not installed; give JSON, or type: pip install 'cronplane[operator]'") from error
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise CommandError(f"The manifests are neither JSON nor YAML: something is wrong{where}") from None
