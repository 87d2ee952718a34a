"""A stand-in for the program `retro`, quick and without jax, for the tests of the launch scripts.

`train` appends a line per step to WORKDIR/steps-TASK.txt and goes on from there when it is started again. A TERM makes it
end with 75 after the step. --config.steps=N, --config.seconds=S (a step), --config.preempt_at=STEP (ends with 75 once,
there), --config.exit=CODE. WORKDIR/starts-TASK.txt gets its arguments at every start. `preflight` prints the JSON that the
file in RETRO_PREFLIGHT holds.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    if argv[0] == "preflight":
        print(Path(os.environ["RETRO_PREFLIGHT"]).read_text())
        return 0
    flags = dict(word.lstrip("-").split("=", 1) for word in argv[1:] if "=" in word)
    return train(Path(flags["workdir"]), argv, {key.removeprefix("config."): value for key, value in flags.items()})


def train(workdir: Path, argv: list[str], settings: dict[str, str]) -> int:
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    task = os.environ.get("SLURM_PROCID", "0")
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / f"starts-{task}.txt", "a") as file:
        file.write(json.dumps(argv) + "\n")
    steps = workdir / f"steps-{task}.txt"
    done = len(steps.read_text().splitlines()) if steps.exists() else 0
    resumed = done > 0
    while done < int(settings.get("steps", 10)):
        time.sleep(float(settings.get("seconds", 0.01)))
        done += 1
        with open(steps, "a") as file:
            file.write(f"{done}\n")
        print(f"step {done}", flush=True)
        if terminated or (not resumed and done == int(settings.get("preempt_at", -1))):
            return 75
    return int(settings.get("exit", 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
