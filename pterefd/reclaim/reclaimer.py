"""One act of reclaim: a moment is put to the triggers, the policy chooses, the host frees, it is counted.

Plugins are guarded: one that raises or answers nonsense is logged with its name and counted; the
built-in default policy does the work then.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pterefd.errors import BadInput, NoSuchMm
from pterefd.hookspecs import Cause, Choice, Kinds, Moment, Policy, ReclaimRequest, ReclaimResult, Trigger, Tunables
from pterefd.host.host import Host
from pterefd.reclaim.plugins import Plugins

DEFAULT_POLICY = "largest_first"
DEFAULT_TRIGGER = "on_demand"


class Reclaimer:
    """Acts on one host. Counters may be read at any time; acts are done one after another.

    totals: bytes freed by (trigger, policy, kind).  runs: acts by (trigger, policy, outcome).
    plugin_errors: by name of trigger, policy or plugin.
    """

    def __init__(
        self,
        host: Host,
        plugins: Plugins,
        log: Any,
        *,
        policy: str = DEFAULT_POLICY,
        triggers: tuple[str, ...] = (DEFAULT_TRIGGER,),
        policy_tunables: dict[str, dict[str, Any]] | None = None,
        trigger_tunables: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self._host = host
        self._plugins = plugins
        self._log = log
        self._acting = threading.Lock()
        self._observers: list[Callable[[ReclaimResult], None]] = []
        self.totals: Counter[tuple[str, str, str]] = Counter()
        self.runs: Counter[tuple[str, str, str]] = Counter()
        self.plugin_errors: Counter[str] = Counter()
        self._policies = self._make_all(plugins.policies, policy_tunables or {}, "policy")
        self._triggers = self._make_all(plugins.triggers, trigger_tunables or {}, "trigger")
        self._policy = policy
        self._active = list(triggers)
        self.set_policy(policy)
        self.set_triggers(list(triggers))

    def _make_all(self, classes: dict[str, Any], values: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
        for name in values:
            if name not in classes:
                raise BadInput(f"tunables for a {kind} {name!r} that no plugin registers")
        return {name: self._plugins.make(cls, values.get(name, {})) for name, cls in classes.items()}

    # ---- what is chosen -----------------------------------------------------------------------

    @property
    def policy(self) -> str:
        """Name of the policy that chooses now."""
        return self._policy

    @property
    def triggers(self) -> list[str]:
        """Names of the triggers that are asked."""
        return list(self._active)

    def available_policies(self) -> list[str]:
        """Names of all policies."""
        return sorted(self._policies)

    def available_triggers(self) -> list[str]:
        """Names of all triggers."""
        return sorted(self._triggers)

    def set_policy(self, name: str) -> None:
        """Another policy, from the next decision on. BadInput where there is none of that name."""
        if name not in self._policies:
            raise BadInput(f"no policy {name!r}; there are: {', '.join(self.available_policies())}")
        self._policy = name

    def set_triggers(self, names: list[str]) -> None:
        """The triggers that are asked from now on. BadInput where there is none of a name."""
        for name in names:
            if name not in self._triggers:
                raise BadInput(f"no trigger {name!r}; there are: {', '.join(self.available_triggers())}")
        self._active = list(dict.fromkeys(names))

    def policy_tunables(self) -> dict[str, Tunables]:
        """Tunables of the policies that declare any."""
        return {name: p.tunables for name, p in self._policies.items() if type(p.tunables).model_fields}

    def trigger_tunables(self) -> dict[str, Tunables]:
        """Tunables of the triggers that declare any."""
        return {name: t.tunables for name, t in self._triggers.items() if type(t.tunables).model_fields}

    def on_result(self, observer: Callable[[ReclaimResult], None]) -> None:
        """Call observer with every result."""
        self._observers.append(observer)

    # ---- acts ---------------------------------------------------------------------------------

    def free_ptes(self, pid: int | None) -> ReclaimResult | None:
        """Somebody wrote pid to sys/vm/free_ptes; None: every mm. NoSuchMm for a pid without an mm.

        Returns what was freed; None where no trigger answers (on_demand is not among the active ones).
        """
        if pid is not None:
            self._host.process(pid)
        return self.moment(Moment(Cause.WRITE, self._host.time_ns, pid=pid))

    def moment(self, moment: Moment) -> ReclaimResult | None:
        """Put a moment to the triggers; the first that answers with a request is served."""
        with self._acting:
            for name in self._active:
                request = self._ask(name, self._triggers[name], moment)
                if request is not None:
                    return self._act(name, request)
        return None

    def _ask(self, name: str, trigger: Trigger, moment: Moment) -> ReclaimRequest | None:
        try:
            request = trigger.request(self._host.view(), moment)
            if request is not None and not isinstance(request, ReclaimRequest):
                raise TypeError(f"request() returned {type(request).__name__}, not a ReclaimRequest")
        except Exception as error:
            self._failed("trigger", name, error)
            return None
        return request

    def _act(self, trigger: str, request: ReclaimRequest) -> ReclaimResult:
        started = time.perf_counter()
        policy = self._policy
        freed: list[tuple[int, int]] = []
        sums = {"empty": 0, "zero": 0}
        complete = self._serve(policy, self._policies[policy], request, freed, sums)
        if not complete and policy != DEFAULT_POLICY:
            policy = DEFAULT_POLICY
            self._serve(policy, self._policies[policy], request, freed, sums)
        total = sums["empty"] + sums["zero"]
        wanted = request.bytes_wanted
        outcome = "nothing" if total == 0 else "done" if wanted is None or total >= wanted else "partly"
        result = ReclaimResult(
            trigger=trigger,
            policy=policy,
            request=request,
            empty_bytes=sums["empty"],
            zero_bytes=sums["zero"],
            freed=tuple(freed),
            seconds=time.perf_counter() - started,
            outcome=outcome,
        )
        self._note(result)
        return result

    def _serve(
        self,
        name: str,
        policy: Policy,
        request: ReclaimRequest,
        freed: list[tuple[int, int]],
        sums: dict[str, int],
    ) -> bool:
        """Follow a policy's choices until there is enough. False where it failed."""
        offered = set(self._host.pids())
        left = None if request.bytes_wanted is None else request.bytes_wanted - sums["empty"] - sums["zero"]
        try:
            for choice in self._choices(policy, request):
                if left is not None and left <= 0:
                    break
                kinds = request.kinds if choice.kinds is None else choice.kinds & request.kinds
                limits = [limit for limit in (left, choice.bytes) if limit is not None]
                try:
                    empty, zero = self._host.free_ptes(choice.pid, kinds, min(limits) if limits else None)
                except NoSuchMm:
                    if choice.pid not in offered:
                        raise  # the policy made it up
                    continue  # it ended since the policy looked
                sums["empty"] += empty
                sums["zero"] += zero
                if empty + zero:
                    freed.append((choice.pid, empty + zero))
                if left is not None:
                    left -= empty + zero
        except Exception as error:
            self._failed("policy", name, error)
            return False
        return True

    def _choices(self, policy: Policy, request: ReclaimRequest) -> Iterator[Choice]:
        """The policy's choices, checked; one about another mm than the request's is an error."""
        for choice in policy.choose(self._host.view(), request):
            if not isinstance(choice, Choice):
                raise TypeError(f"choose() yielded {type(choice).__name__}, not a Choice")
            if request.pid is not None and choice.pid != request.pid:
                raise ValueError(f"chose pid {choice.pid} where pid {request.pid} was asked for")
            yield choice

    def _failed(self, kind: str, name: str, error: Exception) -> None:
        self.plugin_errors[name] += 1
        self._log.error("plugin.failed", kind=kind, plugin=name, error=f"{type(error).__name__}: {error}")

    def _note(self, result: ReclaimResult) -> None:
        """Count, log and tell of one act."""
        for kind, number in (("empty", result.empty_bytes), ("zero", result.zero_bytes)):
            self.totals[result.trigger, result.policy, kind] += number
        self.runs[result.trigger, result.policy, result.outcome] += 1
        self._log.info(
            "reclaimed",
            trigger=result.trigger,
            policy=result.policy,
            pid=result.request.pid,
            kinds=_names(result.request.kinds),
            empty_bytes=result.empty_bytes,
            zero_bytes=result.zero_bytes,
            mms=len(result.freed),
            outcome=result.outcome,
            seconds=round(result.seconds, 6),
        )
        for observer in self._observers:
            observer(result)
        for implementation in self._plugins.manager.hook.pterefd_reclaimed.get_hookimpls():
            try:
                implementation.function(*[result][: len(implementation.argnames)])
            except Exception as error:
                self._failed("observer", self._plugins.names_of(implementation), error)


def _names(kinds: Kinds) -> str:
    return "+".join(kind.name.lower() for kind in Kinds if kind in kinds and kind.name)
