"""Write messages of Ray's own processes (raylet, GCS) to Ray's log instead of printing them on the terminal.

    log_messages()      # before or after `ray.init`

Example: if a worker is killed, its raylet reports "A worker died or was killed ..." to all drivers. A thread of the
driver prints such messages, also with `ray.init(log_to_driver=False)`, because this option is about the output of
workers only. The search prints one line of its own about the trial (`SessionCallback.on_trial_recover`).
"""

import logging
from typing import Any

from ray._private import worker  # private: Ray has no option for this


def log_messages() -> None:
    """From now on, write the messages of Ray's processes to the logger "ray" of this process."""
    worker.print_to_stdstream = _log


def _log(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Replacement of Ray 2.60's `print_to_stdstream`: log the lines in `data` with the name of their process."""
    logging.getLogger("ray").error("(%s) %s", data.get("pid"), "\n".join(data["lines"]))
