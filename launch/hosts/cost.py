"""The cost note of the launch scripts: `retro preflight`'s figures for a config and a topology, and the price.

    python launch/hosts/cost.py TOPOLOGY PRICE_PER_CHIP_HOUR RETRO_PROGRAM --config=... [--config.a.b=c]

Prints a few lines and always exits with 0: a failure of preflight is printed and never stops a launch. The price is the
user's (empty: none); the amount is in the price's currency. Needs no package.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

PATIENCE_SECONDS = 120


def main(argv: Sequence[str]) -> int:
    topology, price, retro, *arguments = argv
    print("\n".join("cost note: " + line for line in note(topology, price, ask_preflight(retro, topology, arguments))))
    return 0


def ask_preflight(retro: str, topology: str, arguments: Sequence[str]) -> Mapping | str:
    """Preflight's report, or the reason why there is none."""
    config = [word for word in arguments if word.startswith(("--config=", "--config.model.", "--config.train."))]
    config += [word for word in arguments if word.startswith("--noconfig.model.")]  # data is not a setting of preflight
    command = [retro, "preflight", f"--topology={topology}", *config, "--no-compile", "--json"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        report = json.loads(result.stdout[result.stdout.index("{") :])
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    except ValueError:
        return (result.stderr.strip().splitlines() or ["no answer"])[-1]
    return report if isinstance(report, Mapping) else "its output is not a JSON object"


def note(topology: str, price: str, report: Mapping | str) -> list[str]:
    """The lines of the note, from the keys that preflight gives."""
    if isinstance(report, str):
        return [f"none, for retro preflight gave no estimate ({report})"]
    lines = []
    memory = report.get("memory_gib")
    if isinstance(memory, Mapping) and _number(memory.get("total")) and _number(memory.get("limit")):
        verdict = "fits" if report.get("fits") else "DOES NOT FIT"
        lines.append(f"{topology}: {verdict}, {memory['total']:.1f} of {memory['limit']:.1f} GiB a device")
    elif "fits" in report:
        lines.append(f"{topology}: {'fits' if report['fits'] else 'DOES NOT FIT'}")
    if _number(step := report.get("step_seconds_roofline")):
        lines.append(f"at least {step:.3g} s a step (roofline, a lower bound)")
    if not _number(hours := report.get("chip_hours")):
        return [*lines, "chip-hours are not in preflight's output"]
    lines.append(f"at least {hours:,.0f} chip-hours for the run")
    try:
        lines.append(f"at least {hours * float(price):,.2f} at your {float(price):,.2f} per chip-hour")
    except ValueError:
        lines.append("give --price-per-chip-hour=PRICE for the amount" if not price else f"{price!r} is not a price")
    return lines


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
