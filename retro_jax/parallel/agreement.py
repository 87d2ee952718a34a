"""Agreement between the processes of a run: a value, an action's result, the checksum of the data read by all."""

import json
import zlib
from collections.abc import Callable

from retro_jax.parallel.hosts import HostsError


def share(value):
    """The JSON value of process 0, on every process; all must call it at the same point."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, length)  # the values of the others are ignored
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def joined_crc32(crc: int, size: int) -> int:
    """The CRC-32 of the concatenated data of all processes, from that of `size` bytes on each; the same on all."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return crc
    parts = np.asarray(multihost_utils.process_allgather(np.uint32(crc))).tolist()
    zeros, joined = bytes(size), parts[0]
    for part in parts[1:]:  # CRC-32 is linear: moving over `size` bytes is the same for every content
        joined = zlib.crc32(zeros, joined) ^ zlib.crc32(zeros) ^ part
    return joined


def on_first(action: Callable[[], object]):
    """Runs `action` on process 0 alone and returns its JSON value everywhere; a ValueError there is raised everywhere."""
    import jax

    if jax.process_count() == 1:
        return action()
    result = error = None
    if jax.process_index() == 0:
        try:
            result = action()
        except (ValueError, OSError) as caught:
            error = caught
    result, message = share([result, None if error is None else str(error)])
    if error is not None:
        raise error
    if message is not None:
        raise HostsError(message)
    return result
