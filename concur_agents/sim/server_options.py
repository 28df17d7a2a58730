"""What an embedded server serves, and where it listens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self, get_args

from concur_agents._access import check_host
from concur_agents._extras import missing_extra
from concur_agents.errors import ConfigError
from concur_agents.sim.pages import Kind, RankHeader
from concur_agents.sim.profile import Profile
from concur_agents.sim.routers import RouterKind
from concur_agents.sim.text import DeterministicModel, Script

if TYPE_CHECKING:
    from concur_agents.sim.app import App
    from concur_agents.sim.client_clock import ClientClock

__all__ = ["ServerOptions"]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The options of `EmbeddedServer`, checked.

    Raises:
        ConfigError: one is out of its range, or others could connect without a token.
    """

    profile: Profile
    model: str | None = None
    """None: the profile's."""
    time_scale: float = 1.0
    metrics: Kind = "vllm"
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    seed: int = 0
    engines: int = 1
    rank_header: RankHeader = "honour"
    worker_header: bool = False
    router: RouterKind | None = None
    sessions: bool = False

    def __post_init__(self) -> None:
        if not self.time_scale > 0:
            raise ConfigError(f"time_scale must be above 0, got {self.time_scale}")
        if self.metrics not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ConfigError(f"metrics must be one of {known}, got {self.metrics!r}")
        if self.engines < 1:
            raise ConfigError(f"engines must be at least 1, got {self.engines}")
        if self.rank_header not in get_args(RankHeader):
            known = ", ".join(get_args(RankHeader))
            raise ConfigError(f"rank_header must be one of {known}, got {self.rank_header!r}")
        if self.sessions and self.metrics != "sglang":
            raise ConfigError('sessions are SGLang\'s: give metrics="sglang" too')
        if self.router is not None and self.router not in get_args(RouterKind):
            known = ", ".join(get_args(RouterKind))
            raise ConfigError(f"router must be one of {known}, got {self.router!r}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        check_host(self.host, self.token)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model or self.profile.model

    def make_app(self, script: Script | None = None, clock: ClientClock | None = None) -> App:
        """The application.

        Raises:
            ImportError: the ``server`` extra is not installed.
        """
        try:
            from concur_agents.sim.app import App
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error
        return App(
            self.profile,
            time_scale=self.time_scale,
            metrics=self.metrics,
            model=DeterministicModel(seed=self.seed, script=script),
            name=self.name,
            clock=clock,
            engines=self.engines,
            rank_header=self.rank_header,
            worker_header=self.worker_header,
            router=self.router,
            sessions=self.sessions,
        )

    def to_json(self) -> str:
        """The options in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """What `to_json` wrote."""
        found = json.loads(line)
        return cls(**{**found, "profile": Profile(**found["profile"])})
