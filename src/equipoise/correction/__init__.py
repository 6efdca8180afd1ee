"""From gradients to corrected gradients."""

from equipoise.correction.ages import AgeAdaptive as AgeAdaptive
from equipoise.correction.batches import num_samples as num_samples
from equipoise.correction.cache import GradientCache as GradientCache
from equipoise.correction.coefficients import Coefficient as Coefficient
from equipoise.correction.coefficients import Constant as Constant
from equipoise.correction.coefficients import LinearDecay as LinearDecay
from equipoise.correction.coefficients import LossCovariance as LossCovariance
from equipoise.correction.coefficients import loss_regression as loss_regression
from equipoise.correction.correctors import GradientCorrector as GradientCorrector
from equipoise.correction.moments import Evidence as Evidence
from equipoise.correction.momentum import MomentumCorrector as MomentumCorrector
from equipoise.correction.options import RefreshOptions as RefreshOptions
from equipoise.correction.plain import Corrector as Corrector
from equipoise.correction.plain import NoCorrection as NoCorrection
from equipoise.correction.recursions import AgentRecursion as AgentRecursion
from equipoise.correction.recursions import FixedRecursion as FixedRecursion
from equipoise.correction.recursions import Recursion as Recursion
from equipoise.correction.recursions import StormRecursion as StormRecursion
from equipoise.correction.rows import row_bytes as row_bytes
from equipoise.correction.storage import Masks as Masks
from equipoise.correction.table import GradientTable as GradientTable
