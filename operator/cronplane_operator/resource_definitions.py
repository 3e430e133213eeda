"""The CRDs, generated from the models of `cron_resource`: structural schemas with validation rules and columns.

What Kubernetes asks of such a schema is in its documentation of CustomResourceDefinitions, "Specifying a structural
schema"; the rules are in CEL.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cronplane_core.kubernetes_client import CRONS, RUNNERS, ResourceKind
from cronplane_operator.cron_resource import CronSpec, CronStatus, RunnerSpec, RunnerStatus

_KEPT = frozenset(
    [
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
    ]
)
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_CRON_RULES = [
    {
        "rule": "!self.cron_expr.contains('TZ=')",
        "message": "write the zone into tz, not into cron_expr",
        "fieldPath": ".cron_expr",
    },
    {
        "rule": "!has(self.backoff) || !has(self.backoff.initial) || !has(self.backoff.maximum)"
        " || self.backoff.initial <= self.backoff.maximum",
        "message": "the maximum is shorter than the initial wait",
        "fieldPath": ".backoff.maximum",
    },
]
_CRON_COLUMNS = [
    ("Schedule", "string", ".spec.cron_expr", 0),
    ("Zone", "string", ".spec.tz", 0),
    ("Entry", "string", ".spec.entrypoint", 0),
    ("Enabled", "boolean", ".spec.enabled", 0),
    ("Next", "string", ".status.next_fire", 0),
    ("Last", "date", ".status.last_fire", 0),
    ("Result", "string", ".status.last_result", 0),
    ("Failures", "integer", ".status.consecutive_failures", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", ".status.last_reason", 1),
    ("Run", "string", ".status.runs[0].id", 1),
]
_RUNNER_COLUMNS = [
    ("Holder", "string", ".status.holder", 0),
    ("Epoch", "integer", ".status.epoch", 0),
    ("Crons", "integer", ".status.crons", 0),
    ("Next", "string", ".status.next_fire", 0),
    ("Lag", "number", ".status.lag_seconds", 0),
    ("Queued", "integer", ".status.queued", 0),
    ("Running", "integer", ".status.running", 0),
    ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
]


def resource_definitions() -> list[dict[str, Any]]:
    """Give the CRDs of this version, as bodies of apiextensions.k8s.io/v1."""
    cron_spec = structural(CronSpec) | {"x-kubernetes-validations": _CRON_RULES}
    return [
        _definition(CRONS, "Cron", cron_spec, structural(CronStatus), columns=_CRON_COLUMNS),
        _definition(RUNNERS, "Runner", structural(RunnerSpec), structural(RunnerStatus), columns=_RUNNER_COLUMNS),
    ]


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """Write a model's JSON Schema as a structural one: nothing referred to, no alternatives, null by leaving out."""
    schema = model.model_json_schema(mode="validation")
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    schema = _resolved(schema, definitions)
    if schema.get("type") == "object" and "properties" not in schema and schema.get("additionalProperties"):
        return _ANYTHING | {key: schema[key] for key in ("description",) if key in schema}
    kept = {key: value for key, value in schema.items() if key in _KEPT and (key, value) != ("default", None)}
    if kept.get("format") == "uuid":
        del kept["format"]
    if "items" in kept:
        kept["items"] = _structural(kept["items"], definitions)
    if "properties" in kept:
        kept["properties"] = {name: _structural(each, definitions) for name, each in kept["properties"].items()}
    if "conditions" in kept.get("properties", {}):
        conditions = kept["properties"]["conditions"]
        conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        # A list that is merged by its keys has no default: it would be there before anybody owns it.
        conditions.pop("default", None)
    return kept


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Put what a schema refers to in its place; of alternatives all but null are one here."""
    found = dict(schema)
    if "$ref" in found:
        name = found.pop("$ref").rpartition("/")[2]
        return _resolved(definitions[name], definitions) | found
    if "const" in found:
        found["enum"] = [found.pop("const")]
    for alternatives in ("anyOf", "allOf"):
        if alternatives in found:
            [only] = [each for each in found.pop(alternatives) if each != {"type": "null"}]
            return _resolved(only, definitions) | found
    return found


def _definition(
    kind: ResourceKind,
    name: str,
    spec: dict[str, Any],
    status: dict[str, Any],
    *,
    columns: list[tuple[str, str, str, int]],
) -> dict[str, Any]:
    singular = name.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # With their definition all resources would go, also those that people applied.
        "metadata": {
            "name": f"{kind.plural}.{kind.group}",
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": singular,
                "categories": ["cronplane"],
            },
            "versions": [_version(kind.version, spec, status, columns=columns)],
        },
    }


def _version(
    name: str, spec: dict[str, Any], status: dict[str, Any], *, columns: list[tuple[str, str, str, int]]
) -> dict[str, Any]:
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": spec, "status": status}}
    return {
        "name": name,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(*column) for column in columns],
        "schema": {"openAPIV3Schema": schema},
    }


def _column(name: str, kind: str, path: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return column | {"priority": priority} if priority else column
