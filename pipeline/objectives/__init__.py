"""What is trained: energies that go down on data and up, or are bounded, elsewhere."""

from pipeline.objectives.kinds import OBJECTIVES, build
from pipeline.objectives.models import load

__all__ = ["OBJECTIVES", "build", "load"]
