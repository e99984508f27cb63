"""``--emit kubernetes``: a TrainJob for Kubeflow Trainer 2.2 or newer."""

from __future__ import annotations

from typing import Any

import yaml

from image_classification.cli.emit.plan import IMAGE, Plan

RUNTIME = "torch-distributed"
"""The ClusterTrainingRuntime that Kubeflow Trainer installs."""

_RESOURCES = {"cuda": "nvidia.com/gpu", "hpu": "habana.ai/gaudi", "xpu": "gpu.intel.com/xe"}
_ILUVATAR = "iluvatar.com/gpu"

# launch.py's names for what Trainer tells every pod; the kubelet fills in $(…).
_SEVERAL_NODES = (
    "env",
    "NNODES=$(PET_NNODES)",
    "NODE_RANK=$(PET_NODE_RANK)",
    "MASTER_ADDR=$(PET_MASTER_ADDR)",
    "MASTER_PORT=$(PET_MASTER_PORT)",
)

_GROUP = 1000  # of the user that Dockerfile names

_FILL_IN = {
    f"image: {IMAGE}": "FILL IN: as your registry names it",
    "claimName: imagenet": "FILL IN: the claim that holds the data",
    "claimName: runs": "FILL IN: a claim for the runs; ReadWriteMany with several nodes",
}


def kubernetes(plan: Plan) -> str:
    """Return the manifest for ``kubectl apply -f``, with its site's values marked FILL IN."""
    text = yaml.safe_dump(manifest(plan), sort_keys=False, allow_unicode=True, width=float("inf"))
    head = [
        f"# {plan.title}",
        "# For Kubeflow Trainer 2.2 or newer: kubectl apply -f FILE",
        "# A container that ends with an error, or with 75 after a signal, is started again; see",
        "# docs/clusters.md for a runtime that tells the two apart.",
    ]
    return "\n".join([*head, *map(_marked, text.splitlines())])


def _marked(line: str) -> str:
    note = _FILL_IN.get(line.strip())
    return line if note is None else f"{line}  # {note}"


def manifest(plan: Plan) -> dict[str, Any]:
    """Return the TrainJob as plain data."""
    volumes: list[dict[str, Any]] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}},
        # A pod's own /dev/shm has 64 MiB, too little for loader processes.
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "runs", "mountPath": plan.runs.target},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if plan.data is not None:
        claim = {"claimName": "imagenet", "readOnly": True}
        volumes.insert(0, {"name": "data", "persistentVolumeClaim": claim})
        mounts.insert(0, {"name": "data", "mountPath": plan.data.target, "readOnly": True})
    pod = {
        # The image's user, who may then write what the claim of the runs holds.
        "securityContext": {"runAsNonRoot": True, "fsGroup": _GROUP},
        "volumes": volumes,
        "containers": [{"name": "node", "volumeMounts": mounts}],
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": plan.name},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "trainer": _trainer(plan),
            "runtimePatches": [
                {
                    "manager": IMAGE,
                    "trainingRuntimeSpec": {
                        "template": {"spec": {"replicatedJobs": [_replicated_job(pod)]}}
                    },
                }
            ],
        },
    }


def _replicated_job(pod: dict[str, Any]) -> dict[str, Any]:
    return {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}


def _trainer(plan: Plan) -> dict[str, Any]:
    # As args, not command: the image's own entry point stays in front. launch.py starts the
    # processes itself, as torchrun would turn its exit code 75 into 1.
    words = ("python", "launch.py", *plan.arguments)
    args = [word.replace("$", "$$") for word in words]
    trainer: dict[str, Any] = {
        "image": IMAGE,
        "args": [*_SEVERAL_NODES, *args] if plan.nodes > 1 else args,
        "numNodes": plan.nodes,
        "numProcPerNode": plan.processes,
        "resourcesPerNode": _resources(plan),
    }
    if plan.cache is not None:
        trainer["env"] = [{"name": "IMAGE_CLASSIFICATION_CACHE", "value": plan.cache}]
    return trainer


def _resources(plan: Plan) -> dict[str, Any]:
    if plan.device == "cpu":
        return {"requests": {"cpu": str(plan.processes * (plan.workers + 1))}}
    resource = _ILUVATAR if plan.device_name.startswith("BI-") else _RESOURCES[plan.device]
    return {"limits": {resource: str(plan.processes)}}
