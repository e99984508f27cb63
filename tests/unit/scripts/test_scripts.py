"""The scripts of scripts/: card scripts run the published configurations, manifests are valid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from image_classification.cli.emit import render_emission
from image_classification.cli.launch import parse

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts"

CARDS = {
    "fp32_1card": ("FP32", "BI-V100x1", 280, 1),
    "amp_1card": ("AMP", "BI-V100x1", 300, 1),
    "fp32_4cards": ("FP32", "BI-V100x4", 1200, 1),
    "amp_4cards": ("AMP", "BI-V100x4", 2048, 1),
    "fp32_8cards": ("FP32", "BI-V100x8", 2400, 1),
    "amp_8cards": ("AMP", "BI-V100x8", 3840, 1),
    "fp32_16cards": ("FP32", "BI-V100x16", 4800, 2),
}
NODES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def script(
    name: str, *argv: str, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k not in NODES}
    return subprocess.run(
        [str(SCRIPTS / f"{name}.sh"), *argv],
        cwd=cwd,
        env={**environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", CARDS)
def test_card_script_runs_the_published_configuration(name, tmp_path):
    precision, platform, global_batch, nodes = CARDS[name]
    done = script(name, "--data-path", "/image net", "--explain", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    assert explained["name"]["model"] == "resnet50"
    assert explained["name"]["precision"] == precision
    assert explained["name"]["platform"] == platform
    assert explained["config"]["data"]["path"] == "/image net"
    assert explained["config"]["batch"]["global"] == global_batch
    assert explained["config"]["batch"]["accumulation"] == 1
    assert explained["config"]["platform"]["num_nodes"] == nodes


def test_every_published_bi_v100_run_has_a_script():
    assert {p.stem for p in SCRIPTS.glob("*_*card*.sh")} == set(CARDS)


def test_card_script_passes_further_options(tmp_path):
    words = ["--workspace", "a  run's $HOME *", "--set", "run.seed=3"]
    done = script("amp_1card", *words, "--data-path=demo", "--explain", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)["config"]
    assert config["run"]["workspace"] == "a  run's $HOME *"
    assert config["run"]["seed"] == 3
    assert config["data"]["path"] == "demo"


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("argv", [(), ("--data-path",), ("--data-path=",), ("--explain",)])
def test_card_script_without_data_path(name, argv):
    done = script(name, *argv)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("error: ")
    assert "--data-path" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sixteen_cards_need_a_node_rank(tmp_path):
    done = script("fp32_16cards", "--data-path", "synthetic", NODE_RANK="0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 16 cards are two machines: on each, set NODE_RANK")
    assert len(done.stderr.splitlines()) == 1
    # With both set it gets as far as launch.py.
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    python = str(tmp_path / "python")
    names = ["fp32_16cards", "--data-path", "synthetic"]
    done = script(*names, NODE_RANK="1", MASTER_ADDR="first", PYTHON=python)
    assert done.returncode == 0, done.stderr
    names_given = "--model resnet50 --precision FP32 --mode convergence --platform BI-V100x16"
    assert done.stdout.split(" ", 1)[1] == f"{names_given} synthetic\n"


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.sh")) + sorted(SCRIPTS.rglob("*.sbatch")))
def test_bash_syntax(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The fields that manifests may use of trainer.kubeflow.org/v1alpha1 in Kubeflow Trainer 2.2
# (runtimePatches, and numProcPerNode as a whole number) and 2.3, of Job (batch/v1) and of Pod (v1).
# A set lists the allowed types; the element of a list describes all its elements.
LABELS: Any = {"*": str}
METADATA = {"name": str, "namespace": str, "labels": LABELS, "annotations": LABELS}
QUANTITY = {str, int}
RESOURCES = {"limits": {"*": QUANTITY}, "requests": {"*": QUANTITY}, "claims": [{"name": str}]}
ENV = [{"name": str, "value": str, "valueFrom": {"*": {"*": str}}}]
VOLUMES = [
    {
        "name": str,
        "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
        "emptyDir": {"medium": str, "sizeLimit": QUANTITY},
        "hostPath": {"path": str, "type": str},
    }
]
VOLUME_MOUNTS = [{"name": str, "mountPath": str, "readOnly": bool, "subPath": str}]
SECURITY = {"runAsUser": int, "runAsGroup": int, "fsGroup": int, "runAsNonRoot": bool}
CONTAINER_PATCHES = [
    {"name": str, "env": ENV, "volumeMounts": VOLUME_MOUNTS, "securityContext": SECURITY}
]
# Without terminationGracePeriodSeconds, which 2.2 does not have.
POD_PATCH = {
    "serviceAccountName": str,
    "volumes": VOLUMES,
    "initContainers": CONTAINER_PATCHES,
    "containers": CONTAINER_PATCHES,
    "imagePullSecrets": [{"name": str}],
    "securityContext": SECURITY,
    "nodeSelector": LABELS,
}
TRAIN_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": METADATA,
    "spec": {
        "runtimeRef": {"name": str, "apiGroup": str, "kind": str},
        "trainer": {
            "image": str,
            "command": [str],
            "args": [str],
            "env": ENV,
            "numNodes": int,
            "resourcesPerNode": RESOURCES,
            "numProcPerNode": int,
        },
        "runtimePatches": [
            {
                "manager": str,
                "trainingRuntimeSpec": {
                    "template": {
                        "metadata": METADATA,
                        "spec": {
                            "replicatedJobs": [
                                {
                                    "name": str,
                                    "template": {
                                        "metadata": METADATA,
                                        "spec": {
                                            "template": {"metadata": METADATA, "spec": POD_PATCH}
                                        },
                                    },
                                }
                            ]
                        },
                    }
                },
            }
        ],
        "suspend": bool,
        "activeDeadlineSeconds": int,
        "managedBy": str,
    },
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "volumes": VOLUMES,
    "containers": [
        {
            "name": str,
            "image": str,
            "command": [str],
            "args": [str],
            "env": ENV,
            "resources": RESOURCES,
            "volumeMounts": VOLUME_MOUNTS,
        }
    ],
}
JOB = {
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [
            {
                "action": str,
                "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
                "onPodConditions": [{"type": str, "status": str}],
            }
        ]
    },
    "template": {"metadata": METADATA, "spec": POD},
}
RUNTIME = {
    "apiVersion": str,
    "kind": str,
    "metadata": METADATA,
    "spec": {
        "mlPolicy": {"numNodes": int, "torch": {}},
        "template": {
            "metadata": METADATA,
            "spec": {
                "replicatedJobs": [
                    {"name": str, "replicas": int, "template": {"metadata": METADATA, "spec": JOB}}
                ],
                "failurePolicy": {"maxRestarts": int},
            },
        },
    },
}


def unknown_fields(value: Any, schema: Any, where: str = "") -> list[str]:
    """Return every path in ``value`` that ``schema`` lacks or gives another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [where]
        found: list[str] = []
        for key, content in value.items():
            inner = schema.get(key, schema.get("*"))
            path = f"{where}.{key}"
            found += [path] if inner is None else unknown_fields(content, inner, path)
        return found
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [where]
        inside = [unknown_fields(v, schema[0], f"{where}[{i}]") for i, v in enumerate(value)]
        return [path for paths in inside for path in paths]
    types = schema if isinstance(schema, set) else {schema}
    return [] if type(value) in types else [where]


def manifest(*argv: str) -> dict[str, Any]:
    request = parse(["--emit=kubernetes", *argv])
    text = render_emission("kubernetes", request.read().on(), argv, ["launch.py"])
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def names(platform: str) -> list[str]:
    return f"--model resnet50 --precision AMP --mode convergence --platform {platform}".split()


@pytest.mark.parametrize(
    "argv",
    [
        names("DGXA100"),
        names("CPU"),
        [*names("BI-V100x16"), "synthetic"],
        [*names("DGX1V"), "/data", "--workspace", "/scratch/a run", "--mode", "benchmark_training"],
    ],
    ids=lambda argv: argv[7],
)
def test_train_job_fields(argv):
    job = manifest(*argv)
    assert unknown_fields(job, TRAIN_JOB) == []
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer, (patch,) = job["spec"]["trainer"], job["spec"]["runtimePatches"]
    assert trainer["numNodes"] >= 1
    assert trainer["numProcPerNode"] >= 1
    # Trainer sets these variables and refuses a job that sets them.
    assert not [e for e in trainer.get("env", []) if e["name"].startswith("PET_")]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    # The name of the job and its container in torch-distributed and in runtime.yaml.
    assert replicated["name"] == pod["containers"][0]["name"] == "node"
    mounts = {m["name"]: m for m in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {v["name"] for v in pod["volumes"]}
    assert mounts["shm"]["mountPath"] == "/dev/shm"
    assert all(volume["readOnly"] for name, volume in mounts.items() if name == "data")


def test_train_job_mounts_the_data():
    job = manifest(*names("DGX1V"), "/data", "--workspace", "/scratch/a run")
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"][
        "replicatedJobs"
    ]
    pod = replicated["template"]["spec"]["template"]["spec"]
    found = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert found == {"data": "/data", "runs": "/scratch/a run", "shm": "/dev/shm"}


def test_unknown_field_is_found():
    job = yaml.safe_load((SCRIPTS / "kubernetes" / "resnet50.yaml").read_text())
    assert unknown_fields(job, TRAIN_JOB) == []
    job["spec"]["podTemplateOverrides"] = []
    job["spec"]["trainer"]["numNodes"] = "1"
    assert unknown_fields(job, TRAIN_JOB) == [
        ".spec.trainer.numNodes",
        ".spec.podTemplateOverrides",
    ]


def test_runtime_restart_policy():
    runtime = yaml.safe_load((SCRIPTS / "kubernetes" / "runtime.yaml").read_text())
    assert unknown_fields(runtime, RUNTIME) == []
    assert runtime["metadata"]["labels"] == {"trainer.kubeflow.org/framework": "torch"}
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert replicated["template"]["metadata"]["labels"] == step
    job = replicated["template"]["spec"]
    # The API server refuses a podFailurePolicy with another restartPolicy.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    by_code = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert by_code == {75: "Ignore", 2: "FailJob", 3: "FailJob"}
