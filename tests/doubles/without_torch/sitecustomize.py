"""On PYTHONPATH: Python starts as if torch were not installed, as with the base install.

transformers imports torch if it is there, which costs each process more than a second.
"""

import os
import sys

sys.modules["torch"] = None
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # "PyTorch was not found"
