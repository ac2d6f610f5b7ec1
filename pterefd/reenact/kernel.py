"""The kernel that agents run on: this machine's here, a guest's in guest.py. Both are used alike."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from pterefd.live import machine

from .agent import SLOTS, AgentGroup, LocalGroup
from .build import build_agent


class Kernel(ABC):
    """What agents run on.

    release, version: uname -r and -v.  config: the options that decide the rules.  fault_around_bytes: as in debugfs.
    swap: there is somewhere to swap to.
    """

    release: str
    version: str
    config: dict[str, str | bool | int]
    fault_around_bytes = 65536
    swap = False

    @abstractmethod
    def agents(self, agent: Path | None = None, *, thp: bool = False, slots: int = SLOTS) -> AgentGroup:
        """Start an agent. agent: as build_agent built it.  thp: leave huge pages as the kernel has them."""


class ThisKernel(Kernel):
    """The running kernel. cpu: agents run on that CPU alone."""

    def __init__(self, cpu: int | None = None) -> None:
        self.cpu = cpu
        self.release, self.version = os.uname().release, os.uname().version
        self.config = machine.kernel_config()
        self.swap = len(Path("/proc/swaps").read_text().splitlines()) > 1
        self.fault_around_bytes = machine.fault_around_bytes() or Kernel.fault_around_bytes

    def agents(self, agent: Path | None = None, *, thp: bool = False, slots: int = SLOTS) -> AgentGroup:
        return LocalGroup(agent or build_agent(), thp=thp, cpu=self.cpu, slots=slots)
