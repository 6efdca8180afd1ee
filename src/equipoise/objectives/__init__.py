"""From batches to losses."""

from equipoise.objectives.standard import Objective as Objective
from equipoise.objectives.standard import Standard as Standard
