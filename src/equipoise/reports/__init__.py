"""Reads records and writes what they say: comparisons, a picture and a page. No torch here."""

from equipoise.reports.arms import ArmSummary as ArmSummary
from equipoise.reports.arms import group_by_label as group_by_label
from equipoise.reports.arms import summarize_arm as summarize_arm
from equipoise.reports.comparison import ArmComparison as ArmComparison
from equipoise.reports.comparison import Comparison as Comparison
from equipoise.reports.comparison import compare_runs as compare_runs
from equipoise.reports.comparison import epochs_to_loss as epochs_to_loss
from equipoise.reports.matching import Cost as Cost
from equipoise.reports.matching import at_cost as at_cost
from equipoise.reports.matching import at_epochs as at_epochs
from equipoise.reports.matching import at_flops as at_flops
from equipoise.reports.matching import at_passes as at_passes
from equipoise.reports.matching import at_seconds as at_seconds
from equipoise.reports.report import default_baseline as default_baseline
from equipoise.reports.report import write_report as write_report
from equipoise.reports.statistics import PairedInterval as PairedInterval
from equipoise.reports.statistics import Spread as Spread
from equipoise.reports.statistics import Verdict as Verdict
from equipoise.reports.statistics import mean_and_deviation as mean_and_deviation
from equipoise.reports.statistics import paired_interval as paired_interval
from equipoise.reports.tables import Table as Table
from equipoise.reports.tables import arms_table as arms_table
from equipoise.reports.tables import comparison_table as comparison_table
from equipoise.reports.wording import caveats as caveats
from equipoise.reports.wording import verdict_sentence as verdict_sentence
