"""What this machine is and how much of it this process may use.

Owns measuring the machine (detect.py) and naming its problems (problems.py), and what is known of processors anywhere:
their catalogue (chips.py) and the export rules (export_rules.py). Knows nothing of models, kernels or the store's
content.
"""

from freehold.hardware.detect import Machine, detect
from freehold.hardware.problems import Problem, problems

__all__ = ["Machine", "Problem", "detect", "problems"]
