"""`retro VERB ...`: passes the rest of the command line to `launch/VERB.py`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from retro_jax.core.streams import OutputLost, deliver, protect

VERBS = {
    "build": "text -> documents, tokenizer, chunks, embeddings, index, neighbors and joined shards",
    "join": "text that is only scored, as an evaluation set beside a finished database",
    "database": "info, verify, add and remove on a finished database",
    "train": "trains a RETRO model, a baseline or a retrofit on joined shards",
    "preflight": "checks that a training step fits on a slice, and estimates its cost, without the slice",
    "evaluate": "bits per byte by subset: baseline, retrieval off, on, random neighbors, empty database",
    "sweep": "many points of one config: builds, trains and evaluates what they share once, then one table and one page",
    "compare": "results of several work directories side by side, with paired intervals",
    "import": "a model of another project (safetensors, GGUF) as a run",
    "export": "a run's model as safetensors with config, tokenizer and model card",
    "sample": "continues a prompt, retrieves after every full chunk and says from which documents",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; 2 for a missing or unknown verb."""
    argv = list(sys.argv[1:] if argv is None else argv)
    protect()
    if argv and argv[0] in VERBS:
        return importlib.import_module(f"launch.{argv[0]}").main(argv[1:])
    if argv and argv[0] in ("--help", "-h", "help"):
        try:
            deliver(usage())
        except OutputLost as lost:
            return lost.tell("retro")
        return 0
    if argv:
        near = difflib.get_close_matches(argv[0], VERBS, n=1)
        print(f"retro: '{argv[0]}' is not a verb" + (f"; did you mean {near[0]}?" if near else "."), file=sys.stderr)
    print(usage(), file=sys.stderr)
    return 2


def usage() -> str:
    verbs = "\n".join(f"  {name:<10}{summary}" for name, summary in VERBS.items())
    return f"retro VERB --config=FILE.py[:ARGUMENTS] --workdir=DIR\n\n{verbs}\n\nretro VERB --help shows a working example."


if __name__ == "__main__":
    sys.exit(main())
