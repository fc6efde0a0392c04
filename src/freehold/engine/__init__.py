"""Engine: continuous batching of many sequences on one model, from token ids to token ids.

Never sees text; a grammar reaches it as a mask callable, a stop word as stop ids. Read in the order of a step: engine,
scheduler (with sequence and blocks), sampler, generation.
"""

from freehold.engine.engine import Engine, EngineConfig, EngineStats
from freehold.engine.generation import Generation, Timings

__all__ = ["Engine", "EngineConfig", "EngineStats", "Generation", "Timings"]
