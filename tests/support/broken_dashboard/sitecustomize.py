"""End Ray's dashboard at its start, as a machine does on which a module of the dashboard is missing.

Python imports this module at its start if PYTHONPATH contains its folder.
"""

import sys

if any(word.endswith("dashboard/dashboard.py") for word in sys.orig_argv):
    raise SystemExit("ModuleNotFoundError: No module named 'aiohttp'")
