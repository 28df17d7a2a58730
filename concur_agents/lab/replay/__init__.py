"""Replays recorded or synthetic agents against a live endpoint, under one gate after another.

`endpoint` asks for exact token counts, `workload` says what the agents want, `arms` what stands
between the two, `driver` runs it, `summary` and `plots` tell. Nothing here is needed to govern.
"""

from concur_agents.lab.replay.arms import Arm, parse_arm, parse_arms
from concur_agents.lab.replay.driver import ArmRun, Options, ReplaySample, StepRow, replay
from concur_agents.lab.replay.endpoint import Endpoint, EndpointError
from concur_agents.lab.replay.replicas import Engines, Replicas, SumProbe
from concur_agents.lab.replay.summary import (
    Summary,
    read_round,
    round_record,
    summarize,
    table,
    work_agrees,
)
from concur_agents.lab.replay.workload import SHAPES, WorkloadOptions, make_plans

__all__ = [
    "SHAPES",
    "Arm",
    "ArmRun",
    "Endpoint",
    "EndpointError",
    "Engines",
    "Options",
    "ReplaySample",
    "Replicas",
    "StepRow",
    "SumProbe",
    "Summary",
    "WorkloadOptions",
    "make_plans",
    "parse_arm",
    "parse_arms",
    "read_round",
    "replay",
    "round_record",
    "summarize",
    "table",
    "work_agrees",
]
