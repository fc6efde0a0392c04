"""What this machine is and how much of it this process may use.

Owns measuring the machine (detect.py) and naming its problems (problems.py). Knows nothing of models, kernels or the
store's content.
"""

from freehold.hardware.detect import Machine, detect
from freehold.hardware.problems import Problem, problems

__all__ = ["Machine", "Problem", "detect", "problems"]
