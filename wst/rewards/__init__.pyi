# The names of this package, each once: type checkers read this file, and so does __init__.py, which imports on demand.
from wst.rewards.base import FunctionReward as FunctionReward
from wst.rewards.base import Reward as Reward
from wst.rewards.base import Scores as Scores
from wst.rewards.composite import WeightedSum as WeightedSum
from wst.rewards.judge import Judge as Judge
from wst.rewards.math.reward import MathAnswer as MathAnswer
from wst.rewards.model import RewardModel as RewardModel
from wst.rewards.standard import Standardized as Standardized
from wst.rewards.text import ExactMatch as ExactMatch
from wst.rewards.text import LabelMatch as LabelMatch
from wst.rewards.text import LastNumber as LastNumber
from wst.rewards.text import Length as Length
from wst.rewards.trl import TRLReward as TRLReward
