"""The demo: one batch of recorded agents against the embedded server, under one gate after another.

`scenario` says what runs, `chat` turns recorded prompts into messages, `course` runs one arm with
real clients, `report` counts, `picture` draws. Nothing here is needed to govern.
"""

from concur_agents.lab.demo.chat import Texts
from concur_agents.lab.demo.course import Course, Progress, run_arm
from concur_agents.lab.demo.report import ArmReport, as_json, summarize
from concur_agents.lab.demo.scenario import (
    FITS_PROFILE,
    FLEET_PROFILE,
    Arm,
    Scenario,
    make_scenario,
    parse_arms,
)

__all__ = [
    "FITS_PROFILE",
    "FLEET_PROFILE",
    "Arm",
    "ArmReport",
    "Course",
    "Progress",
    "Scenario",
    "Texts",
    "as_json",
    "make_scenario",
    "parse_arms",
    "run_arm",
    "summarize",
]
