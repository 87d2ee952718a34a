"""The Rust library `tokenizers`, imported here alone."""

import json
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.stages.run import StageError


def open_tokenizer(source: Path | Mapping, where: Path | str, remedy: str):
    """The library's tokenizer, from a tokenizer.json or from its content with other rules.

    Args:
      where: the file, for the message.

    Raises:
      StageError: the library cannot read it.
    """
    import tokenizers

    make = tokenizers.Tokenizer
    try:
        return make.from_file(str(source)) if isinstance(source, Path) else make.from_str(json.dumps(source))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises no narrower class, and its panics are no Exception
        raise StageError(
            f"{where} cannot be read by tokenizers {tokenizers.__version__} ({error}): it was written by another release "
            f"of the library, or is damaged. Install that release or a later one, or save the tokenizer again with this "
            f"one. {remedy}"
        ) from None
