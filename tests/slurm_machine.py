"""This machine as a SLURM cluster of two nodes, from Debian's packages slurmctld, slurmd, slurm-client and munge.

    with slurm_machine(directory) as variables:  # SLURM_CONF, for sbatch, squeue, scontrol

Everything lies in the directory: keys, sockets, state, logs. All daemons run in the foreground as children of this process
and are stopped at the end, jobs first. Accounting, cgroups and CPU binding are left out: they are not what is tested.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job starts when its old credentials are void: seconds here, two minutes by default.
AuthInfo=socket={directory}/munge/socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=test Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if not program(name)]


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@contextmanager
def slurm_machine(directory: Path) -> Iterator[dict[str, str]]:
    """Runs the daemons; yields the variables that SLURM's programs need to find them."""
    # The first node has the machine's own name, for the tasks look the coordinator's address up by it.
    host = socket.gethostname().partition(".")[0]
    nodes = (host, host + "-b")
    for name in ("munge", "state", "log", *(f"spool-{node}" for node in nodes)):
        (directory / name).mkdir(parents=True)
    (directory / "munge").chmod(0o711)
    key = directory / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    config = directory / "slurm.conf"
    config.write_text(
        CONFIG.format(host=host, user=getpass.getuser(), directory=directory, nodes=nodes, ports=ports(3))
    )
    variables = {"SLURM_CONF": str(config)}
    munge = directory / "munge"
    commands = {
        "munged": [
            *(program("munged"), "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        ],
        "slurmctld": [program("slurmctld"), "-D", "-c"],
        **{f"slurmd-{node}": [program("slurmd"), "-D", "-N", node] for node in nodes},
    }
    daemons = []
    try:
        for name, command in commands.items():
            with open(directory / "log" / f"{name}.out", "w") as log:
                daemons.append(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log))
            time.sleep(0.5)
        wait_until_idle(variables, len(nodes), directory)
        yield variables
    finally:
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=os.environ | variables, check=False, timeout=30)
        wait_until_idle(variables, len(nodes), directory, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_until_idle(variables: dict[str, str], nodes: int, directory: Path, check: bool = True) -> None:
    for _ in range(60):
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        found = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
        if found.stdout.split() == ["idle"] * nodes:
            return
        time.sleep(0.5)
    if check:
        logs = "\n".join(path.read_text()[-2000:] for path in sorted((directory / "log").iterdir()))
        raise RuntimeError(f"SLURM's nodes did not become idle: {found.stdout} {found.stderr}\n{logs}")


def ports(count: int) -> list[int]:
    """Free ones, until somebody else takes them."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    numbers = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return numbers
