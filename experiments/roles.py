"""The two parts in every experiment, and the priority each has. Free of torch, so that it can be imported anywhere."""

from collections.abc import Mapping
from typing import Literal

Role = Literal["inference", "training"]
ROLES: tuple[Role, ...] = ("inference", "training")
PRIORITY: Mapping[Role, Literal["high", "low"]] = {"inference": "high", "training": "low"}
