"""The live networks, their losses, and the module that is exported."""

from acq_isl.training.network.live import (
    Deployed,
    Kind,
    LiveNetwork,
    NetworkConfig,
    Normalise,
    beta_nll,
    join_members,
    select_labels,
    sum_over_labels,
)

__all__ = [
    "Deployed",
    "Kind",
    "LiveNetwork",
    "NetworkConfig",
    "Normalise",
    "beta_nll",
    "join_members",
    "select_labels",
    "sum_over_labels",
]
