r"""Lower confidence bounds on the margin of the population that the rows were drawn from.

Notation: rows :math:`i = 1..n` are independent draws; :math:`a_i = \sum_k T_{ik} \log S_{ik}`; :math:`\bar T` is
the population's average teacher and :math:`\hat T` the sample's. The population margin is

.. math:: M = E\, g_i, \qquad g_i = a_i - \sum_k T_{ik} \log \bar T_k .

The plug-in margin :math:`\hat M` uses :math:`\hat T`, which depends on every row, in place of :math:`\bar T`.

**Gibbs' step.** :math:`\hat M = \frac1n \sum_i g_i - KL(\hat T \| \bar T) \le \frac1n \sum_i g_i`, since
:math:`H(\hat T) = -\sum_k \hat T_k \log \bar T_k - KL(\hat T \| \bar T)`. So the plug-in margin never exceeds a mean
of independent variables with expectation :math:`M`. Lower bounds for such means hold for it, although the threshold
is estimated from the same rows.

Every bound assumes that teacher and witness were fixed before these rows were seen: a witness fitted on them, or chosen
among several on them, makes the :math:`g_i` dependent. The lower bounds of one certificate (mean path, channel,
calibrated channel) hold at the stated confidence each, not all at once.

All values are in nats. A bound is an instance of :class:`certvae.theory.bounds.base.Bound` in a file of its own.
:data:`BOUNDS` holds all bounds by name.
"""

from certvae.theory.bounds.base import BOUNDS, Bound, Evidence, find_bound, register, score_range
from certvae.theory.bounds.bernstein import bernstein_bound
from certvae.theory.bounds.betting import Betting
from certvae.theory.bounds.hoeffding import hoeffding_bound
from certvae.theory.bounds.normal import normal_bound
from certvae.theory.bounds.plugin import plugin_bound
from certvae.theory.bounds.spending import spending

__all__ = [
    "BOUNDS",
    "Betting",
    "Bound",
    "Evidence",
    "bernstein_bound",
    "find_bound",
    "hoeffding_bound",
    "normal_bound",
    "plugin_bound",
    "register",
    "score_range",
    "spending",
]
