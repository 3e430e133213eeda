"""The chart, rendered by helm, which has to be in PATH. No cluster is needed, and nothing is asked of one."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "cronplane"
RELEASE, NAMESPACE = "rel", "here"
NEWEST = "1.34"
Document = dict[str, Any]

OUTSIDE = {"database": {"existingSecret": "our-database"}}
ADDRESSES = {"database": {"url": "postgresql://s@db/c", "ownerUrl": "postgresql://o@db/c"}}
# Everything that can be switched on, and every list and map with something in it.
EVERYTHING: Document = {
    "global": {"imageRegistry": "images.example.org", "imagePullSecrets": [{"name": "pull"}]},
    "commonLabels": {"team": "platform"},
    "commonAnnotations": {"example.org/note": "kept"},
    "image": {"repository": "ours/cronplane", "digest": f"sha256:{'0' * 64}"},
    "installation": {"name": "production"},
    "organizations": {
        "acme": {
            "namespaces": ["acme", "acme-batch"],
            "entrypoints": ["dummy_print"],
            "cronQuota": 5,
            "triggersPerMinute": "default",
        },
        "umbrella": {"namespaces": ["umbrella"], "entrypoints": "every"},
    },
    "entries": {
        "http_request": {
            "execution": "pod",
            "settings": {
                "ALLOWED_HOSTS": "reports.internal:8080",
                "SECRETS": {"reports_key": {"hosts": ["a.example"], "organizations": "*"}},
            },
            "secrets": {"SECRET_REPORTS_KEY": {"name": "reports", "key": "token"}},
            "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}],
        }
    },
    "runs": {
        "namespace": "runs",
        "allowedImages": {"images.example.org/team/*": "*"},
        "ceiling": {"memory": "4Gi"},
        "profiles": {
            "large": {
                "image": "images.example.org/large:1",
                "serviceAccount": "large",
                "requests": {"cpu": "2"},
                "limits": {"memory": "8Gi"},
                "nodeSelector": {"size": "large"},
                "tolerations": [{"operator": "Exists"}],
                "environment": {"MODE": "batch"},
                "environmentSecrets": ["reports"],
                "secretFiles": {"certificates": "/certificates"},
                "imagePullSecrets": ["pull"],
                "runtimeClass": "gvisor",
                "priorityClass": "low",
            }
        },
        "serviceAccount": {"annotations": {"example.org/role": "runs"}},
    },
    "api": {
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"example.org/internal": "true"}},
        "ingress": {
            "enabled": True,
            "className": "public",
            "annotations": {"example.org/limit": "10"},
            "hosts": ["cronplane.example.org"],
            "tls": [{"secretName": "certificate", "hosts": ["cronplane.example.org"]}],
        },
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["cronplane.example.org"]},
        "autoscaling": {"enabled": True, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}},
    },
    "networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"tier": "edge"}}}]},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "alertLabels": {"team": "platform"}},
    },
}
ROLE_EXTRAS: Document = {
    "podAnnotations": {"example.org/pod": "yes"},
    "podLabels": {"tier": "control"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "system",
    "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/extra/ca.pem"}],
    "extraEnvFrom": [{"secretRef": {"name": "extra"}}],
    "extraVolumes": [{"name": "extra", "secret": {"secretName": "extra"}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    "serviceAccount": {"name": "given", "annotations": {"example.org/role": "service"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """What a release is made of, hooks included."""

    documents: tuple[Document, ...]

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def names(self, kind: str) -> list[str]:
        """Name what there is of a kind, with its namespace if it has one of its own."""
        return sorted(each["metadata"]["name"] for each in self if each["kind"] == kind)

    def one(self, kind: str, name: str, *, namespace: str = NAMESPACE) -> Document:
        """Get an object that has to be there."""
        [found] = [
            each
            for each in self
            if (each["kind"], each["metadata"]["name"]) == (kind, name)
            and each["metadata"].get("namespace", namespace) == namespace
        ]
        return found

    def pods(self) -> list[tuple[str, Document]]:
        """Give the spec of every pod, with the name of what makes it."""
        specs = ((each["metadata"]["name"], each) for each in self)
        return [(name, spec) for name, each in specs if (spec := _pod_spec(each)) is not None]

    def pod(self, name: str) -> Document:
        """Get the pod that something makes."""
        return dict(self.pods())[name]


def _pod_spec(document: Document) -> Document | None:
    if document["kind"] == "Pod":
        found: Document = document["spec"]
        return found
    template = document.get("spec", {}).get("template")
    return template["spec"] if template and "containers" in template.get("spec", {}) else None


def variables(container: Document) -> Document:
    """Give a container's own variables by name: a value, or the name and key of a Secret."""
    return {each["name"]: each.get("value", _secret(each)) for each in container["env"]}


def _secret(variable: Document) -> tuple[str, str] | None:
    reference = variable.get("valueFrom", {}).get("secretKeyRef")
    return (reference["name"], reference["key"]) if reference else None


def helm(*arguments: str, values: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Call helm with values."""
    program = shutil.which("helm")
    assert program, "helm is not in PATH; `make chart` gets it"
    return subprocess.run(
        [program, *arguments, "--values", "-"], input=json.dumps(values), capture_output=True, text=True, check=False
    )


@cache
def _rendered(values: str, version: str, release: str) -> Manifests:
    options = ["--namespace", NAMESPACE, "--kube-version", version]
    done = helm("template", release, str(CHART), *options, values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return Manifests(documents=tuple(each for each in yaml.safe_load_all(done.stdout) if each))


def render(values: Mapping[str, Any], *, version: str = NEWEST, release: str = RELEASE) -> Manifests:
    """Render the chart with values, as for a new release."""
    return _rendered(json.dumps(values), version, release)
