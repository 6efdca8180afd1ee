"""Who is connected: masks, the rules that choose them, and their one owner."""

from __future__ import annotations

from equipoise.topology.attachment import Attachment as Attachment
from equipoise.topology.connectivity import ConnectivitySampling as ConnectivitySampling
from equipoise.topology.distributions import Distribution as Distribution
from equipoise.topology.distributions import active_counts as active_counts
from equipoise.topology.distributions import distribution_names as distribution_names
from equipoise.topology.distributions import er as er
from equipoise.topology.distributions import erk as erk
from equipoise.topology.distributions import uniform as uniform
from equipoise.topology.masks import density as density
from equipoise.topology.masks import drop_and_grow as drop_and_grow
from equipoise.topology.masks import top_k_mask as top_k_mask
from equipoise.topology.owner import MaskOwner as MaskOwner
from equipoise.topology.rewiring import Rewiring as Rewiring
from equipoise.topology.rewiring import rigl as rigl
from equipoise.topology.rewiring import rigl_itop as rigl_itop
from equipoise.topology.rewiring import set_itop as set_itop
from equipoise.topology.rewiring import set_rewiring as set_rewiring
from equipoise.topology.scores import Score as Score
from equipoise.topology.scores import gradient_magnitude as gradient_magnitude
from equipoise.topology.scores import uniform_noise as uniform_noise
from equipoise.topology.scores import weight_magnitude as weight_magnitude
from equipoise.topology.selection import sparse_parameters as sparse_parameters
from equipoise.topology.topology import LayerSummary as LayerSummary
from equipoise.topology.topology import Topology as Topology
