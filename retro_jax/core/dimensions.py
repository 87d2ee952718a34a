"""The dimension alphabet: every jaxtyping signature of the project uses these letters.

    B  batch (sequences)             D  width of the stream at hand (decoder d, encoder d')
    T  tokens of a sequence          H  attention heads
    C  chunks of a sequence, T = C*M F  feed-forward width
    M  chunk length                  V  vocabulary
    K  neighbors of a chunk          N  rows of a table (chunks of a database, documents)
    R  retrieved length, R = 2*M     E  width of the frozen encoder's embedding

Positions, chunks and neighbors count from 0 in code; layer numbers (the set P) count from 1, as in the paper.
"""

# The value of padded tokens, missing neighbors and their ids in stored arrays.
# It is negative so that it can never be read as token 0 or as chunk 0 (no vocabulary and no database has an entry -1);
# every consumer turns it into an explicit mask before it indexes anything.
PADDING = -1


def check_ids(what: str, ids, size: int, remedy: str = "") -> None:
    """Raises ValueError where an id is neither PADDING nor in [0, size), the rows of its table.

    JAX clamps an index that is out of range and NumPy reads -2 as the last row but one, both without an
    error; so ids are checked on the host when they are read.

    Args:
      what: the ids, with the file that they are from, and the table.
      ids: an integer array.
    """
    if not ids.size or (ids.max() < size and ids.min() >= PADDING):
        return
    wrong = ids.max() if ids.max() >= size else ids.min()
    raise ValueError(
        f"{what}: {wrong} is not a valid id; ids run from 0 to {size - 1} (-1 is padding). {remedy}".rstrip()
    )
