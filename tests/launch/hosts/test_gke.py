"""The manifest of launch/hosts/gke.py: against the schemas of Kubernetes and of JobSet, and no value becomes another field."""

import json

import jsonschema
import kubernetes_validate
import pytest
import yaml
from launch_fixture import launch
from places import FIXTURES

from launch.hosts.gke import main, manifest

SCHEMA = json.loads((FIXTURES / "jobset_schema.json").read_text())
VALUES = {
    "name": "retro-7b5",
    "image": "some/image:1",
    "topology": "v5p:8x8x4",
    "workdir": "gs://my-bucket/7b5",
    "arguments": ["--config=configs/retro.py:7b5", "--config.data.directory=gs://my-bucket/data"],
}
OLDEST_KUBERNETES = "1.31"  # podFailurePolicy is stable from there on


def validate(jobset: dict) -> None:
    """The JobSet by our schema of its CRD; the Job inside by Kubernetes' own, unknown fields refused."""
    jsonschema.validate(jobset, SCHEMA)
    for job in jobset["spec"]["replicatedJobs"]:
        inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job["template"]["spec"]}
        for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(inner, version, strict=True)


def container(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "accelerator"),
    [
        ("v5p:8x8x4", 64, 4, "tpu-v5p-slice"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v4:2x2x1", 1, 4, "tpu-v4-podslice"),
        ("v6e:1x1", 1, 1, "tpu-v6e-slice"),
    ],
)
def test_the_manifest_fits_its_schemas(topology, hosts, chips, accelerator):
    jobset = manifest(**VALUES | {"topology": topology})
    validate(jobset)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert container(jobset)["resources"]["limits"] == {"google.com/tpu": chips}
    selector = job["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]


def changed(path: str, value) -> dict:
    """The manifest with one field of its spec set."""
    jobset = manifest(**VALUES)
    *parents, last = path.split("/")
    at = jobset["spec"]
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    return jobset


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("failurePolicy/maxRestart", 3),
        ("failurePolicy/maxRestarts", "3"),
        ("failurePolicy/rules/0/action", "RestartJobsetAndIgnoreMaxRestarts"),
        ("failurePolicy/rules/0/onJobFailureReasons", ["ExitCode"]),
        ("replicatedJobs/0/replica", 1),
        ("replicatedJobs/0/template/spec/backofLimit", 0),
        ("replicatedJobs/0/template/spec/podFailurePolicy/rules/0/onExitCodes/values", ["75"]),
        ("replicatedJobs/0/template/spec/template/spec/restart", "Never"),
    ],
)
def test_the_schemas_refuse_mistakes(path, value):
    """Guards against a schema that accepts everything."""
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(changed(path, value))


def test_preempted_and_saved_is_restarted_without_being_counted():
    """Exit code 75 and a lost node fail the Job with the reason PodFailurePolicy, which the JobSet does not count."""
    spec = manifest(**VALUES, max_restarts=7)["spec"]
    assert spec["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [75]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy asks for
    assert container({"spec": spec})["name"] == "train"


@pytest.mark.parametrize(
    "word",
    [
        "--config.x=a: b",
        "--config.x='\"",
        "--config.x=1\n    - injected",
        "--config.x=${image}",
        "- {a: b}",
        "--config.x=; rm -rf /",
        "!!python/object:x",
        "--config.x=é\t#",
    ],
)
def test_a_value_stays_one_argument(word, capsys):
    """Only the one argument changes through YAML and back."""
    flags = ["--name=a", "--image=i", "--topology=v4:2x2x1", "--workdir=gs://my-bucket/x"]
    assert main([*flags, "--", word]) == 0
    jobset = yaml.safe_load(capsys.readouterr().out)
    validate(jobset)
    arguments = container(jobset)["args"]
    assert arguments == ["--workdir=/gcs/x", word.replace("$", "$$")]
    arguments.pop()
    assert main(flags) == 0
    assert jobset == yaml.safe_load(capsys.readouterr().out)


def test_kubernetes_expands_nothing():
    """Guards against Kubernetes' replacement of $(HOME) and $$ in arguments."""
    arguments = container(manifest(**VALUES | {"arguments": ["--config.x=$(HOME) $$"]}))["args"]
    assert arguments[1] == "--config.x=$$(HOME) $$$$"


def test_what_is_in_the_bucket_is_where_it_is_mounted():
    assert container(manifest(**VALUES))["args"] == [
        "--workdir=/gcs/7b5",
        "--config=configs/retro.py:7b5",
        "--config.data.directory=/gcs/data",
    ]
    with pytest.raises(ValueError, match="names another"):
        manifest(**VALUES | {"arguments": ["--config.data.directory=gs://other/data"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Retro"}, "--name is at most 40 small letters"),
        ({"name": "x" * 41}, "--name is at most 40"),
        ({"namespace": "a b"}, "--namespace"),
        ({"service_account": "a/b"}, "--service-account"),
        ({"topology": "v5p"}, "chips: v4, v5e, v5p, v6e"),
        ({"topology": "h100:8"}, "chips: v4, v5e, v5p, v6e"),
        ({"topology": "v5e:3x3"}, "has 9, which is no multiple"),
        ({"workdir": "runs/x"}, "gs://BUCKET/FOLDER"),
    ],
)
def test_what_kubernetes_would_refuse(change, message):
    with pytest.raises(ValueError, match=message):
        manifest(**VALUES | change)


def test_a_mistake_shows_before_anything_is_deleted():
    flags = ["--name=x", "--image=i", "--topology=v9:2x2", "--workdir=gs://my-bucket/x", "--config=x.py", "--dry-run"]
    result = launch("gke", "restart", "--delete", *flags, retro="retro")
    assert (result.returncode, result.stdout) == (1, "")
    assert "chips: v4, v5e, v5p, v6e" in result.stderr


def test_the_dry_run_shows_the_manifest():
    flags = ["--name=x", "--image=i", "--topology=v4:2x2x1", "--workdir=gs://my-bucket/x", "--config=it's.py"]
    shown = launch("gke", "start", *flags, "--max-restarts=9", "--namespace=team", "--dry-run", retro="none").stdout
    first, *middle, last = shown.splitlines()
    assert (first, last) == ("kubectl --namespace=team apply --filename=- <<'JOBSET'", "JOBSET")
    wanted = manifest("x", "i", "v4:2x2x1", "gs://my-bucket/x", ["--config=it's.py"], namespace="team", max_restarts=9)
    assert yaml.safe_load("\n".join(middle)) == wanted
