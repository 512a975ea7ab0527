"""On PYTHONPATH: Python starts as if torch and gcsfs were not installed, as with the base install.

transformers imports torch if it is there, which costs each process more than a second, and
tensorboardX the client of Google Cloud Storage, which comes with gcsfs and costs half of one.
"""

import gc
import os
import sys

sys.modules["torch"] = None
if "FSSPEC_GCS" not in os.environ:  # no bucket is reached
    sys.modules["google.cloud.storage"] = None
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # "PyTorch was not found"

gc.set_threshold(50_000, 20, 100)  # to import and to trace make no garbage
