"""From batches to losses."""

from equipoise.objectives.adversarial import AdversarialTraining as AdversarialTraining
from equipoise.objectives.adversarial import Attacker as Attacker
from equipoise.objectives.adversarial import Mart as Mart
from equipoise.objectives.adversarial import Trades as Trades
from equipoise.objectives.standard import Objective as Objective
from equipoise.objectives.standard import Standard as Standard
