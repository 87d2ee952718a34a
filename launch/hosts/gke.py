"""Fills in launch/hosts/jobset.yaml: the Kubernetes manifest of a training run on one TPU slice of GKE.

    python launch/hosts/gke.py --name=retro-7b5 --image=IMAGE --topology=v5p:8x8x4 --workdir=gs://BUCKET/7b5 -- --config=...

Values are put into the parsed template and written by the YAML library, never pasted into text, so that no value can
become another field; the container runs `retro train` without a shell. The bucket is mounted at /gcs, and arguments that
name something in it are changed to that path.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

TEMPLATE = Path(__file__).with_name("jobset.yaml")
MOUNT = "/gcs"
ACCELERATORS = {  # GKE's node label cloud.google.com/gke-tpu-accelerator
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
CHIPS_PER_HOST = 4  # of the machine types that make up slices of several hosts; smaller slices are one host
LONGEST_NAME = 40  # the names of pods are the JobSet's with a suffix, and hold at most 63 characters


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prints the JobSet of a training run.", allow_abbrev=False)
    for flag in ("name", "image", "topology", "workdir"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--service-account", default="default")
    parser.add_argument("--max-restarts", default=3, type=int)
    parser.add_argument("arguments", nargs="*", help="of retro train, after a lone --")
    given = vars(parser.parse_args(argv))
    try:
        print(yaml.safe_dump(manifest(**given), sort_keys=False, width=120), end="")
    except ValueError as error:
        print(f"launch/hosts/gke.py: {error}", file=sys.stderr)
        return 1
    return 0


def manifest(
    name: str,
    image: str,
    topology: str,
    workdir: str,
    arguments: Sequence[str],
    namespace: str = "default",
    service_account: str = "default",
    max_restarts: int = 3,
) -> dict:
    """The JobSet as nested dicts.

    Raises:
      ValueError: a name that Kubernetes would refuse, an unknown topology, a path in no bucket or in another one.
    """
    for what, value in (("--name", name), ("--namespace", namespace), ("--service-account", service_account)):
        check_name(what, value)
    chip, _, shape = topology.partition(":")
    if chip not in ACCELERATORS or not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*){1,2}", shape):
        raise ValueError(
            f"--topology names a chip and the shape of a slice, such as v5p:8x8x4 or v5e:16x16, but is {topology!r}; "
            f"chips: {', '.join(ACCELERATORS)}."
        )
    chips = math.prod(map(int, shape.split("x")))
    if chips > CHIPS_PER_HOST and chips % CHIPS_PER_HOST:
        raise ValueError(
            f"A host has {CHIPS_PER_HOST} chips, but {topology} has {chips}, which is no multiple of that."
        )
    found = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+)/(.+)", workdir)
    if not found:
        raise ValueError(f"--workdir is a folder of a bucket, gs://BUCKET/FOLDER, but is {workdir!r}.")
    words = [f"--workdir={workdir}", *arguments]
    values = {
        "name": name,
        "namespace": namespace,
        "service_account": service_account,
        "max_restarts": max_restarts,
        "image": image,
        "accelerator": ACCELERATORS[chip],
        "topology": shape,
        "hosts": max(1, chips // CHIPS_PER_HOST),
        "chips_per_host": min(chips, CHIPS_PER_HOST),
        "bucket": found[1],
        "arguments": [literal(mounted(word, found[1])) for word in words],
    }
    return fill(yaml.safe_load(TEMPLATE.read_text(encoding="utf-8")), values)


def check_name(flag: str, value: str) -> None:
    """Raises ValueError for a value that is not a Kubernetes name, or too long as the prefix of pods' names."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", value) or len(value) > LONGEST_NAME:
        raise ValueError(
            f"{flag} is at most {LONGEST_NAME} small letters, digits and dashes, begins with a letter and does not end "
            f"with a dash, but is {value!r}."
        )


def mounted(word: str, bucket: str) -> str:
    """`gs://BUCKET/x`, alone or as the value of a flag, as the path where the pod sees it."""
    head, scheme, path = word.partition("gs://")
    if not scheme:
        return word
    if not path.startswith(bucket + "/"):
        raise ValueError(f"One bucket is mounted, that of --workdir, gs://{bucket}, but {word!r} names another.")
    return f"{head}{MOUNT}{path.removeprefix(bucket)}"


def literal(word: str) -> str:
    """Escapes a word for Kubernetes, which replaces $(NAME) in arguments and reads $$ as one $."""
    return word.replace("$", "$$")


def fill(template, values: Mapping):
    """The template with every scalar `${key}` replaced by values[key], of whatever type that is."""
    if isinstance(template, dict):
        return {key: fill(item, values) for key, item in template.items()}
    if isinstance(template, list):
        return [fill(item, values) for item in template]
    if isinstance(template, str) and (found := re.fullmatch(r"\$\{(\w+)\}", template)):
        return values[found[1]]
    return template


if __name__ == "__main__":
    sys.exit(main())
