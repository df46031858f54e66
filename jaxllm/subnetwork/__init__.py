"""Train random parts of a model: a subnetwork is `params -> smaller params`, and a smaller config."""

from jaxllm.subnetwork.extract import extract as extract
from jaxllm.subnetwork.extract import extract_in_turn as extract_in_turn
from jaxllm.subnetwork.rates import Rates as Rates
from jaxllm.subnetwork.rates import shrink as shrink
from jaxllm.subnetwork.sample import sample as sample
from jaxllm.subnetwork.sample import sampled_units as sampled_units
from jaxllm.subnetwork.schedule import SCHEDULES as SCHEDULES
from jaxllm.subnetwork.schedule import Savings as Savings
from jaxllm.subnetwork.schedule import Schedule as Schedule
from jaxllm.subnetwork.schedule import Stage as Stage
from jaxllm.subnetwork.schedule import evolving as evolving
from jaxllm.subnetwork.schedule import get_schedule as get_schedule
from jaxllm.subnetwork.schedule import layer_dropout as layer_dropout
from jaxllm.subnetwork.schedule import progressive_layer_drop as progressive_layer_drop
from jaxllm.subnetwork.schedule import random_paths as random_paths
from jaxllm.subnetwork.schedule import savings as savings
from jaxllm.subnetwork.view import check_schedule as check_schedule
from jaxllm.subnetwork.view import subnetwork as subnetwork
