"""Rows of a CSV file with a header, as the standard library reads them, without its limit on the length of a field."""

import csv
from collections.abc import Iterable, Iterator

_LONGEST = 1 << 30  # characters of a field; the library's own limit of 131,072 is less than an article


def csv_rows(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yields a record for each row.

    Args:
      lines: of the file, with their line endings; a quoted field may go over several.

    Raises:
      ValueError: a row with another number of fields than the header, or broken quotes.
    """
    rows = csv.reader(lines, strict=True)
    header = _next(rows, 0)
    number = 0
    while header is not None and (row := _next(rows, number + 1)) is not None:
        if not row:
            continue  # an empty line
        number += 1
        if len(row) != len(header):
            raise ValueError(
                f"record {number:,}: expected {len(header)} fields ({', '.join(header)}), found {len(row)}."
            )
        yield dict(zip(header, row, strict=True))


def _next(rows, number: int) -> list[str] | None:
    before = csv.field_size_limit(_LONGEST)
    try:
        return next(rows, None)
    except csv.Error as error:
        raise ValueError(f"record {number:,}: expected a row of CSV, found {error}.") from None
    finally:
        csv.field_size_limit(before)
