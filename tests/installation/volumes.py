"""A place for the built-in database's volume, in a cluster that has no provisioner: a folder of its node.

Kubernetes gives such a folder to nobody, so a pod of the administrator's gives it to the image's user.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.kubectl import Kubectl

_DEFAULT = "storageclass.kubernetes.io/is-default-class"
_PARENT = "/var/tmp"  # noqa: S108 - of the node
_USER = "65532:65532"


@contextmanager
def default_volumes(kubectl: Kubectl, *, name: str, image: str) -> Iterator[None]:
    """See to it that the cluster has a default StorageClass with a volume, until the end."""
    classes = kubectl.read("storageclasses")["items"]
    if any(each["metadata"].get("annotations", {}).get(_DEFAULT) == "true" for each in classes):
        yield
        return
    folder = f"/node/{name}"
    _on_the_node(kubectl, name=name, image=image, script=f"mkdir {folder} && chown {_USER} {folder}")
    kubectl("create", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": _items(name)}))
    yield
    kubectl("delete", f"persistentvolume/{name}", f"storageclass/{name}")
    _on_the_node(kubectl, name=name, image=image, script=f"rm -r {folder}")


def _items(name: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name, "annotations": {_DEFAULT: "true"}},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "storageClassName": name,
                "capacity": {"storage": "5Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": f"{_PARENT}/{name}", "type": "Directory"},
            },
        },
    ]


def _on_the_node(kubectl: Kubectl, *, name: str, image: str, script: str) -> None:
    """Run a script as root on the node, whose folder of long-lived temporary files is /node."""
    container = {
        "name": "node",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-ec", script],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    volumes = [{"name": "node", "hostPath": {"path": _PARENT, "type": "Directory"}}]
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    kubectl("create", "--namespace", "default", "--filename", "-", given=json.dumps(pod))
    kubectl.wait("jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--namespace", "default")
    kubectl("delete", f"pod/{name}", "--namespace", "default")
