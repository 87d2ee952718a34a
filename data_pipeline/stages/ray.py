"""Makes shards on a Ray cluster: plain ones as tasks, those with a resource on actors. The only file that imports Ray.

Placement, retries and restarts are Ray's: a lost task is run again on another node, a lost actor is restarted there and
opens its resource again. Results are files renamed into the stage's directory, which must be on storage that every node
sees under the same path; a shard that is made twice is renamed twice, with the same bytes.
"""

import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from data_pipeline.stages.engine import Resource, Shard
from data_pipeline.stages.lock import BuildLock
from data_pipeline.stages.run import StageError
from retro_jax.parallel.preemption import kept_handlers

try:
    import ray
except ImportError:
    ray = None

RETRIES = 10  # of one shard whose process or node was lost
ANSWER = 10  # seconds for an address to answer
LOOK = 120  # seconds for every node to start a worker
ACCELERATORS = {"none": {}, "gpu": {"num_gpus": 1}, "tpu": {"resources": {"TPU": 1}}}
NAMES = {"gpu": "GPU", "tpu": "TPU"}  # in ray's list of resources


class RayEngine:
    """Connects to a running cluster and checks that every node can do the work.

    Args:
      address: HOST:PORT of the head node, or "auto" on one of its nodes.
      lock: of the build; a node that sees its file has the same storage.
      accelerator: "none", "gpu" or "tpu": each actor whose resource computes on an accelerator gets one.

    Raises:
      StageError: Ray is not installed, no cluster answers, it lacks the accelerator, or a node lacks this program or
        does not see the directory.
    """

    def __init__(self, address: str, lock: BuildLock, accelerator: str = "none"):
        if ray is None:
            raise StageError("--engine=ray needs the package ray, of the [ray] extra: pip install 'retro_jax[ray]'.")
        if accelerator not in ACCELERATORS:
            raise StageError(f"--accelerator must be one of {', '.join(ACCELERATORS)}, but is {accelerator!r}.")
        if accelerator != "none":
            os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the accelerators are the actors', not this process's
        self._accelerator = accelerator
        _connect(address)
        try:
            self._check_accelerator(address)
            _check_nodes(lock)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster; Ray ends the tasks and actors of this process."""
        ray.shutdown()

    @property
    def accelerated(self) -> bool:
        """See `Engine.accelerated`."""
        return self._accelerator != "none"

    def _check_accelerator(self, address: str) -> None:
        if self.accelerated and not ray.cluster_resources().get(NAMES[self._accelerator]):
            raise StageError(
                f"--accelerator={self._accelerator} asks for nodes with one, but none of the {len(_nodes())} nodes at "
                f"{address} has any. Add such a node (ray start --address={address}), or take --accelerator=none."
            )

    def map(self, function: Callable, shards: Sequence[Shard]) -> Iterator[tuple[int, dict]]:
        """See `Engine.map`. The only shard of a stage is made here if it needs no resource: sending it gains nothing."""
        if len(shards) == 1 and shards[0].resource is None:
            yield 0, function(shards[0], None)
            return
        here = os.getcwd()
        running = {}  # Ray's reference -> (number of the shard, its queue, its actor)
        for number, shard in enumerate(shards):
            if shard.resource is None:
                running[_run.remote(here, function, shard)] = (number, None, None)
        queues = _queues(shards)
        for resource, queue in queues:
            for actor in self._actors(resource, len(queue), len(queues)):
                number = queue.popleft()
                running[actor.run.remote(here, function, shards[number])] = (number, queue, actor)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            number, queue, actor = running.pop(done)
            yield number, _result(done, shards[number])
            if queue:
                following = queue.popleft()
                running[actor.run.remote(here, function, shards[following])] = (following, queue, actor)
            del actor, done  # the last handle of an idle actor: Ray frees its place and memory

    def _actors(self, resource: Resource, shards: int, resources: int) -> list:
        """As many holders of a resource as there are places for it: accelerators, or nodes; at most one a shard."""
        options = {"max_restarts": -1, "max_task_retries": RETRIES, "scheduling_strategy": "SPREAD", "num_cpus": 1}
        places = len(_nodes())
        if resource.accelerator and self.accelerated:
            options |= ACCELERATORS[self._accelerator]
            places = int(ray.cluster_resources()[NAMES[self._accelerator]])
        if resource.bytes:
            most = max(node["Resources"].get("memory", 0) for node in _nodes())
            if resource.bytes > most:
                raise StageError(
                    f"{resource.key} takes about {resource.bytes / 2**30:.1f} GiB of memory, but the largest node gives "
                    f"Ray {most / 2**30:.1f}. Raise config.data.index_shards in a new --workdir, or add larger nodes."
                )
            options["memory"] = resource.bytes
        return [_Holder.options(**options).remote(resource) for _ in range(min(shards, max(1, places // resources)))]


class RayJobs(RayEngine):
    """Runs functions on a cluster, each where Ray finds the devices that it asks for.

    Args: of `RayEngine`. With an accelerator, a job gets so many of it as `start` asks for; without, one CPU.
    """

    def start(self, function: Callable[[], int], devices: int = 1):
        """Starts a function that returns a number; if its node is lost, Ray starts it again on another one."""
        options: dict = {"num_cpus": 1}
        if self._accelerator == "gpu":
            options |= {"num_gpus": devices}
        elif self._accelerator == "tpu":
            options |= {"resources": {NAMES["tpu"]: devices}}
        return _job.options(**options).remote(os.getcwd(), function)

    def poll(self, job) -> int | None:
        """What the function returned; None while it runs or waits for its devices.

        Raises:
          StageError: it was lost with its process or node too often.
        """
        if not ray.wait([job], timeout=0)[0]:
            return None
        try:
            return ray.get(job)
        except ray.exceptions.RayError as error:
            raise StageError(f"Ray lost the job: {str(error).strip().splitlines()[-1]:.300}") from None

    def stop(self, job) -> None:
        """Raises KeyboardInterrupt in the function, if it runs."""
        ray.cancel(job)


def _queues(shards: Sequence[Shard]) -> list[tuple[Resource, deque]]:
    """Numbers of the shards that need a resource, by resource."""
    found: dict[str, tuple[Resource, deque]] = {}
    for number, shard in enumerate(shards):
        if shard.resource is not None:
            found.setdefault(shard.resource.key, (shard.resource, deque()))[1].append(number)
    return list(found.values())


def _nodes() -> list[Mapping]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # ray itself waits a minute
            socket.create_connection((host, int(port)), ANSWER).close()
        elif address != "auto":
            raise ConnectionError("an address is HOST:PORT, or auto on a node of the cluster")
        with kept_handlers():  # Ray's own for SIGTERM ends this process silently
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise StageError(
            f"No Ray cluster answers at --address={address} ({error}). Start one with `ray start --head`, give the address "
            f"it prints, and use one version of Python and Ray on all nodes; or take --engine=process."
        ) from None


def _check_nodes(lock: BuildLock) -> None:
    """Raises StageError unless every node sees the build's lock file and has this program."""
    wanted, nodes = (lock.content, os.getcwd(), program()), _nodes()
    looks = []
    for node in nodes:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        looks.append(_look.options(scheduling_strategy=strategy).remote(str(lock.path), wanted[1]))
    for node, look in zip(nodes, looks, strict=True):
        name = node["NodeManagerAddress"]
        try:
            found = ray.get(look, timeout=LOOK)
        except (ray.exceptions.RayError, ImportError) as error:
            if node["NodeID"] not in {one["NodeID"] for one in _nodes()}:
                continue  # lost since it was asked, or just before: Ray lists a dead node until it misses heartbeats
            raise StageError(
                f"Node {name} cannot run this program ({str(error).strip().splitlines()[-1]}). Install the same retro_jax "
                f"with its [build] and [ray] extras there, or take the node out of the cluster."
            ) from None
        for have, want, what in zip(found, wanted, ("lock file", "working directory", "program"), strict=True):
            if have != want:
                raise StageError(
                    f"Node {name} has another {what} than this one ({have or 'none'}, not {want}). All nodes need "
                    f"{lock.directory} and the working directory on shared storage under one path, and one version of retro_jax."
                )


def program() -> str:
    """A digest of the source of this program."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(
        [*root.glob("data_pipeline/**/*.py"), *root.glob("retro_jax/**/*.py"), *root.glob("launch/**/*.py")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _result(reference, shard: Shard) -> dict:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # as if it had been raised here
    except ray.exceptions.RayError as error:
        raise StageError(
            f"Shard {shard.name} was lost {RETRIES + 1} times with the process or node that made it "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Most often a node is out of memory: "
            f"give nodes with more, then run the same command again; finished shards stay."
        ) from None


def _make_remote() -> tuple:
    @ray.remote(max_retries=RETRIES, num_cpus=1, scheduling_strategy="SPREAD")
    def run(directory, function, shard):
        os.chdir(directory)  # paths of a config may be relative
        return function(shard, None)

    @ray.remote(max_retries=RETRIES, num_cpus=1, scheduling_strategy="SPREAD")
    def job(directory, function):
        os.chdir(directory)
        return function()

    @ray.remote(num_cpus=0)
    def look(lock, directory):
        content = Path(lock).read_text(encoding="utf-8", errors="replace") if Path(lock).exists() else ""
        return content, directory if Path(directory).is_dir() else "", program()

    @ray.remote
    class Holder:
        def __init__(self, resource):
            self._resource, self._thing = resource, None

        def run(self, directory, function, shard):
            os.chdir(directory)
            if self._thing is None:
                self._thing = self._resource.get()
            return function(shard, self._thing)

    return run, job, look, Holder


if ray is not None:
    _run, _job, _look, _Holder = _make_remote()
