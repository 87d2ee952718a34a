"""Memory of a retrofit step against training everything, by the compiler: docs/measured/retrofit_memory.md.

    python benchmarks/compiled/retrofit_memory.py [RUN] [PAGE]          # or: make retrofit-memory; resumes

`retro preflight` of configs/imported.py for the shapes of two models, frozen and with everything trained. No weights are needed and no
TPU: the step is compiled for the slice. Answers are kept in RUN as JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from retro_jax.config import ModelConfig, RunConfig, to_dict
from retro_jax.core.files import read_json, write_json
from retro_jax.interchange.architectures import FAMILY

ROOT = Path(__file__).resolve().parents[2]

SHAPES = {
    "SmolLM2-135M": dict(
        vocabulary=49_152, layers=30, width=576, heads=9, head_dim=64, feed_forward=1_536, key_heads=3, rotary_theta=1e5
    ),
    "Llama-2-7B": dict(
        vocabulary=32_000,
        layers=32,
        width=4_096,
        heads=32,
        head_dim=128,
        feed_forward=11_008,
        tied_readout=False,
    ),
}
# (shape, slice, settings)
ROWS = (
    ("SmolLM2-135M", "cpu:1", ("train.batch=8", "model.sequence_length=512")),
    ("Llama-2-7B", "v5p:4x4x4", ("model.attention=xla", "train.mesh.data=1", "train.mesh.fsdp=64")),
)
TRAINED = {"retrieval": "frozen", "all": "everything"}
GIB = ("parameters", "moments", "gradients_and_activations", "total")


def write_shape(folder: Path, name: str) -> Path:
    """A run directory of a model, without its weights."""
    path = folder / name / "config.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = ModelConfig(**FAMILY, retrieval_layers=(), norm_epsilon=1e-5, **SHAPES[name])
        write_json(path, to_dict(RunConfig(model=model)))
    return path.parent


def answer(folder: Path, name: str, topology: str, settings: tuple[str, ...], trainable: str) -> dict:
    """The report of a preflight, from its file where it was made before."""
    path = folder / f"{name}-{topology.replace(':', '-')}-{trainable}.json"
    if not path.exists():
        config = f"--config=configs/imported.py:{write_shape(folder, name).resolve()}"
        words = [f"--config.{word}" for word in (*settings, f"train.trainable={trainable}")]
        command = [sys.executable, "-m", "launch", "preflight", config, f"--topology={topology}", *words, "--json"]
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        write_json(path, json.loads(found.stdout))
    return read_json(path, f"Delete {path}; it is made again.")


def page(folder: Path) -> str:
    lines = [
        "# Memory of a retrofit step",
        "",
        "Written by `make retrofit-memory`; do not edit. `retro preflight --config=configs/imported.py:RUN`, with",
        "`--config.train.trainable=retrieval` (frozen) and `all` (everything), by the compiler. GiB are a device's. Frozen weights have",
        "no gradient and no moments; the backward pass still goes through the decoder's layers to those that read neighbors. Temporaries",
        "are gradients, activations and what the compiler keeps beside them; GB moved are what a device reads and writes in a step.",
        "",
        "| model | slice | sequences | trained | trained parameters | parameters | moments | temporaries | GiB needed | of everything | GB moved |",
        f"|{'---|' * 11}",
    ]
    for name, topology, settings in ROWS:
        found = {kind: answer(folder, name, topology, settings, kind) for kind in TRAINED}
        for kind, report in found.items():
            memory, counts = report["memory_gib"], report["parameters"]
            trained = counts["total"] * memory["moments"] / found["all"]["memory_gib"]["moments"]
            cells = [
                *(name, topology, _sequences(settings), TRAINED[kind], f"{trained / 1e6:,.1f} M"),
                *(f"{memory[part]:.2f}" for part in GIB),
                f"{memory['total'] / found['all']['memory_gib']['total']:.0%}",
                f"{report['bytes_a_device']['memory'] / 1e9:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Exact settings beside those of `configs/imported.py`:", ""]
    lines += [
        f"* {name} on {topology}: `{' '.join(f'--config.{word}' for word in words)}`" for name, topology, words in ROWS
    ]
    return "\n".join(lines) + "\n"


def _sequences(settings: tuple[str, ...]) -> str:
    given = dict(word.split("=") for word in settings)
    return f"{given.get('train.batch', 256)} of {given.get('model.sequence_length', 2_048)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "retrofit_memory")
    parser.add_argument("page", type=Path, nargs="?", default=ROOT / "docs" / "measured" / "retrofit_memory.md")
    chosen = parser.parse_args()
    chosen.page.write_text(page(chosen.run), encoding="utf-8")
    print(chosen.page)


if __name__ == "__main__":
    main()
