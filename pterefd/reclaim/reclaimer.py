"""One act of reclaim: a moment is put to the triggers, the policy chooses, the host frees, it is counted.

Plugins are guarded (guard.py): one that raises, answers nonsense or is over its time is logged with its name and
counted; the built-in default policy does the work then, and one that fails again and again is put aside.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pterefd.errors import BadInput, NoSuchMm, Refused
from pterefd.hookspecs import Cause, Choice, Kinds, Moment, ReclaimRequest, ReclaimResult, Tunables, View
from pterefd.reclaim.guard import Abandoned, Plugin, Watch, guarded, has_own, plain
from pterefd.reclaim.plugins import OBSERVER, Plugins
from pterefd.reclaim.seats import Conduct, Seats
from pterefd.views.rates import FaultRates

DEFAULT_POLICY = "largest_first"
DEFAULT_TRIGGER = "on_demand"
DEADLINE_SECONDS = 1.0
IMPORT_SECONDS = 10.0  # for a plugin file that is taken up while running
FAILURES = 3  # in a row, before a plugin is put aside
SPARE_CHOICES = 64  # in a row that free nothing, beyond two an mm: a policy that yields for ever is stopped


class ShownView(View, Protocol):
    """A view that remembers what it has told."""

    def shown(self, pid: int) -> bool:
        """Whether this view has told of an mm of that pid, which may have ended since."""


class Reclaimable(Protocol):
    """A host, as far as reclaim knows one: simulated or live.

    on_pressure: told by cause, group or None, and bytes wanted that memory is short; returns bytes freed.
    """

    on_pressure: Callable[[Cause, str | None, int], int] | None

    @property
    def seed(self) -> int:
        """Of the randomness that plugins may use."""

    @property
    def time_ns(self) -> int:
        """The host's clock."""

    @property
    def mms(self) -> int:
        """How many there are."""

    def process(self, pid: int) -> object:
        """What is known of a process. NoSuchMm."""

    def group_of(self, pid: int) -> str:
        """The mm's group; "" for none."""

    def in_group(self, group: str) -> frozenset[int]:
        """Pids of a group's mms."""

    def view_for(
        self, rng: Callable[[], random.Random], rates: FaultRates, pids: frozenset[int] | None = None
    ) -> ShownView:
        """The host now, for one decision of a plugin: as ArrayView takes them."""

    def free_ptes(self, pid: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        """Free up to nbytes (None: all) in one mm; bytes freed: empty, zero, mixed. NoSuchMm, Refused."""


@dataclass
class _Act:
    """One moment on its way. It can be gone on with behind any plugin: each is crossed off before it is called."""

    moment: Moment
    started: float
    number: int
    to_ask: list[str]
    trigger: str = ""
    request: ReclaimRequest | None = None
    policies: list[str] = field(default_factory=list)
    policy: str = ""
    freed: list[tuple[int, int]] = field(default_factory=list)
    sums: Counter[str] = field(default_factory=Counter)
    refused: Refused | None = None
    result: ReclaimResult | None = None
    to_tell: list[tuple[Plugin, Callable[[ReclaimResult], object]]] | None = None

    @property
    def bytes(self) -> int:
        """Freed so far."""
        return self.sums.total()

    @property
    def left(self) -> int | None:
        """Bytes still wanted; None for all there is."""
        wanted = None if self.request is None else self.request.bytes_wanted
        return None if wanted is None else wanted - self.bytes


class Reclaimer:
    """Acts on one host. Counters may be read at any time; acts are done one after another.

    totals: bytes freed by (trigger, policy, kind).  runs: acts by (trigger, policy, outcome).
    plugin_errors: by name of trigger, policy or plugin.
    policies_by_trigger: policies of triggers that do not take the one in charge.
    deadline: seconds that a plugin may take for one decision; None for no limit, and no thread of its own.
    failures: of a plugin, in a row, before it is put aside.
    """

    def __init__(
        self,
        host: Reclaimable,
        plugins: Plugins,
        log: Any,
        *,
        policy: str = DEFAULT_POLICY,
        triggers: tuple[str, ...] = (DEFAULT_TRIGGER,),
        policy_tunables: dict[str, dict[str, Any]] | None = None,
        trigger_tunables: dict[str, dict[str, Any]] | None = None,
        policies_by_trigger: dict[str, str] | None = None,
        deadline: float | None = DEADLINE_SECONDS,
        failures: int = FAILURES,
    ) -> None:
        self._host = host
        self._plugins = plugins
        self._log = log
        self._acting = threading.Lock()
        self._observers: list[Callable[[ReclaimResult], None]] = []
        self._deadline = deadline
        self._decisions = 0
        self._rates = FaultRates()
        self._conduct = Conduct(failures)
        self.totals: Counter[tuple[str, str, str]] = Counter()
        self.runs: Counter[tuple[str, str, str]] = Counter()
        self._policies = Seats("policy", plugins, policy_tunables or {})
        self._triggers = Seats("trigger", plugins, trigger_tunables or {})
        self._policy = self._policies.known(policy)
        self._by_trigger: dict[str, str] = {}
        for trigger, name in (policies_by_trigger or {}).items():
            self.set_policy_of(trigger, name)
        self._active: list[str] = []
        self._answering: dict[Cause, list[str]] = {}
        self.set_triggers(list(triggers))
        host.on_pressure = self.pressure

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
        return self._policies.names()

    def available_triggers(self) -> list[str]:
        """Names of all triggers."""
        return self._triggers.names()

    def set_policy(self, name: str) -> None:
        """Another policy, from the next decision on. BadInput where there is none of that name."""
        self._policy = self._policies.known(name)

    def policy_of(self, trigger: str) -> str | None:
        """The policy that a trigger has for itself; None where it takes the one in charge."""
        return self._by_trigger.get(trigger)

    def set_policy_of(self, trigger: str, name: str | None) -> None:
        """A trigger's own policy from its next decision on; None for the one in charge. BadInput."""
        self._triggers.known(trigger)
        if name is None:
            self._by_trigger.pop(trigger, None)
        else:
            self._by_trigger[trigger] = self._policies.known(name)

    def set_triggers(self, names: list[str]) -> None:
        """The triggers that are asked from now on. BadInput where there is none of a name."""
        self._active = list(dict.fromkeys(self._triggers.known(name) for name in names))
        self._answering = {
            cause: [name for name in self._active if cause in self._triggers[name].causes] for cause in Cause
        }

    def policy_tunables(self) -> dict[str, Tunables]:
        """Tunables of the policies that declare any."""
        return self._policies.tunables()

    def trigger_tunables(self) -> dict[str, Tunables]:
        """Tunables of the triggers that declare any."""
        return self._triggers.tunables()

    def set_limits(self, deadline: float | None, failures: int) -> None:
        """Other limits for plugins, from the next decision on: seconds for one, failures in a row."""
        self._deadline = deadline
        self._conduct.bear(failures)

    def set_tunables(self, kind: str, name: str, values: dict[str, Any]) -> None:
        """Tunables of a policy or a trigger, all at once; None stands for a tunable's default. BadInput."""
        seats = self._seats(kind)
        seats.set_values(name, _given(seats, name, values))

    def check_tunables(self, kind: str, name: str, values: dict[str, Any]) -> None:
        """BadInput where set_tunables() would not take them."""
        seats = self._seats(kind)
        seats.with_values(name, _given(seats, name, values))

    def check_known(self, policies: Iterable[str], triggers: Iterable[str]) -> None:
        """BadInput where there is no policy, or no trigger, of a name."""
        for seats, names in ((self._policies, policies), (self._triggers, triggers)):
            for name in names:
                seats.known(name)

    def _seats(self, kind: str) -> Seats:
        return self._policies if kind == "policy" else self._triggers

    def look_into(self, directories: Iterable[Path]) -> list[Path]:
        """Plugin directories that reload() takes files from, too. Returns those that are new."""
        return self._plugins.look_into(directories)

    def forget(self, directories: Iterable[Path]) -> None:
        """Plugin directories that reload() takes no files from; what came from there is in no more."""
        with self._acting:
            self._plugins.forget(directories)
            self._drop_missing()

    def on_result(self, observer: Callable[[ReclaimResult], None]) -> None:
        """Call observer with every result."""
        self._observers.append(observer)

    # ---- plugins ------------------------------------------------------------------------------

    @property
    def plugin_errors(self) -> Counter[str]:
        """Failures by name of the plugin."""
        return self._conduct.errors

    def put_aside(self) -> dict[Plugin, str]:
        """(kind, name) of the plugins that are not called any more, and what they did last."""
        return dict(self._conduct.aside)

    def take_back(self, name: str) -> None:
        """Call a plugin again that was put aside: `NAME` or `KIND NAME`. BadInput where there is none."""
        found = [plugin for plugin in self._conduct.aside if name in (plugin[1], " ".join(plugin))]
        if not found:
            raise BadInput(f"{name!r} is not put aside")
        for plugin in found:
            self._conduct.take_back(plugin)

    def changed_files(self) -> dict[Path, tuple[int, int]]:
        """Plugin files that are new or have changed, with a stamp of what they are now."""
        return self._plugins.changed()

    def reload(self, files: Iterable[Path] | None = None, *, within: Collection[Path] | None = None) -> list[str]:
        """Take up new and changed plugin files, and those that did not fit so far (these, or all that there are).

        What was there carries on otherwise. Returns what came in, as `KIND NAME`. BadInput, in one line, where a file
        does not fit, once the others are in.  within: only those of these directories, and it is the caller's to log
        what came in.
        """
        names: list[tuple[str, str]] = []
        errors: list[str] = []
        waiting = [
            path
            for path in (self._plugins.to_try() if files is None else files)
            if within is None or path.parent in within
        ]

        def steps(watch: Watch) -> None:
            while waiting:
                path = waiting.pop(0)
                watch.call(("file", str(path)), self._take_up, path, names, errors)

        def late(plugin: Plugin, error: Exception) -> None:
            errors.append(f"{plugin[1]}: {error}")

        with self._acting:
            guarded(steps, None if self._deadline is None else max(self._deadline, IMPORT_SECONDS), late)
            self._drop_missing()
        came = [f"{kind} {name}" for kind, name in names]
        if within is None:
            if came:
                self._log.info("plugins reloaded", plugins=came)
            for reason in errors:
                self._log.error("plugin refused", error=reason)
        if errors:
            raise BadInput("; ".join(errors))
        return came

    def _drop_missing(self) -> None:
        """Forget what no plugin registers any more, and do without it.

        Policies and triggers in charge that files had and have no more: others take their place, and it is said.
        """
        for seats in (self._policies, self._triggers):
            seats.drop_missing()
        if self._policy not in self._policies:
            self._log.warning("policy is gone", policy=self._policy, instead=DEFAULT_POLICY)
            self._policy = DEFAULT_POLICY
        for trigger, policy in list(self._by_trigger.items()):
            if trigger not in self._triggers:
                del self._by_trigger[trigger]
            elif policy not in self._policies:
                self._log.warning("policy is gone", policy=policy, trigger=trigger, instead=self._policy)
                del self._by_trigger[trigger]
        for name in self._active:
            if name not in self._triggers:
                self._log.warning("trigger is gone", trigger=name)
        self.set_triggers([name for name in self._active if name in self._triggers])

    def _take_up(self, path: Path, names: list[tuple[str, str]], errors: list[str]) -> None:
        """One file, and what it brings in its seat."""
        came = self._plugins.reload([path])
        errors += came.errors
        for kind, name in came.names:
            for seats in (self._policies, self._triggers):
                if kind == seats.kind:
                    try:
                        seats.remake(name)
                    except BadInput as error:
                        errors.append(str(error))
                        self._plugins.refused.add(path)
            self._conduct.take_back((kind, name))
        names += came.names

    def state(self) -> dict[str, Any]:
        """What plugins remember, and what a view remembers for them: as JSON has it."""
        with self._acting:
            return {
                "decisions": self._decisions,
                "rates": self._rates.state(),
                "policies": self._policies.state(),
                "triggers": self._triggers.state(),
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state() of a reclaimer with the same plugins."""
        with self._acting:
            self._decisions = int(state["decisions"])
            self._rates.restore(state["rates"])
            self._policies.restore(state["policies"])
            self._triggers.restore(state["triggers"])

    # ---- acts ---------------------------------------------------------------------------------

    def free_ptes(self, pid: int | None) -> ReclaimResult | None:
        """Somebody wrote pid to sys/vm/free_ptes; None: every mm. NoSuchMm for a pid without an mm.

        Returns what was freed; None where no trigger answers (on_demand is not among the active ones). Refused where
        the host would free none of what was chosen.
        """
        if pid is not None:
            self._host.process(pid)
        return self._asked(Moment(Cause.WRITE, self._host.time_ns, pid=pid))

    def reclaim(self, nbytes: int) -> ReclaimResult | None:
        """Somebody wrote bytes to sys/vm/pt_reclaim/reclaim. None where no trigger answers. Refused, as free_ptes()."""
        return self._asked(Moment(Cause.RECLAIM, self._host.time_ns, bytes=nbytes))

    def _asked(self, moment: Moment) -> ReclaimResult | None:
        """A moment that somebody waits for."""
        act = self._act(moment)
        if act is None:
            return None
        if act.refused is not None and not act.bytes:
            raise act.refused
        return act.result

    def pressure(self, cause: Cause, group: str | None, nbytes: int) -> int:
        """Memory of the host, or of a group, is short by nbytes: Cause.LOW or Cause.OOM. Returns bytes freed."""
        if not self._answering[cause]:
            return 0
        result = self.moment(Moment(cause, self._host.time_ns, bytes=nbytes, group=group))
        return 0 if result is None else result.bytes

    @property
    def ticking(self) -> bool:
        """Whether some active trigger wants to know that the trace's time moved on."""
        return bool(self._answering[Cause.TICK])

    def tick(self) -> None:
        """The trace's time moved on, by about 10 ms. Costs nothing where no active trigger answers TICK."""
        if self._answering[Cause.TICK]:
            self.moment(Moment(Cause.TICK, self._host.time_ns))

    def moment(self, moment: Moment) -> ReclaimResult | None:
        """Put a moment to the triggers; the first that answers with a request is served."""
        act = self._act(moment)
        return None if act is None else act.result

    def _act(self, moment: Moment) -> _Act | None:
        aside = self._conduct.aside
        if not self._answering[moment.cause]:
            return None
        with self._acting:
            to_ask = [name for name in self._answering[moment.cause] if ("trigger", name) not in aside]
            act = _Act(moment, time.perf_counter(), self._decisions, to_ask)
            self._decisions += 1
            guarded(lambda watch: self._steps(act, watch), self._deadline, self._failed)
        return act

    def _steps(self, act: _Act, watch: Watch) -> None:
        """The act from where it stands to its end."""
        while act.request is None:
            if not act.to_ask:
                return
            name = act.to_ask.pop(0)
            request = self._ask(name, act, watch)
            if request is not None:
                act.trigger, act.request = name, request
                chosen = self._by_trigger.get(name, self._policy)
                names = dict.fromkeys((chosen, DEFAULT_POLICY))
                act.policies = [name for name in names if ("policy", name) not in self._conduct.aside]
        while act.result is None:
            if not act.policies:
                act.result = self._result(act, failed=True)
                break
            act.policy = act.policies.pop(0)
            if self._serve(act, watch):
                act.result = self._result(act)
        if act.to_tell is None:
            self._note(act.result, act.refused)
            act.to_tell = list(self._listeners(act))
        while act.to_tell:
            plugin, function = act.to_tell.pop(0)
            try:
                watch.call(plugin, function, act.result)
            except Exception as error:
                self._failed(plugin, error)

    def _view(self, act: _Act, request: ReclaimRequest | None = None) -> ShownView:
        """The host for a plugin's eyes: all of it, or what a request is about."""
        pids: frozenset[int] | None = None
        if request is not None and request.pid is not None:
            pids = frozenset((request.pid,))
        elif request is not None and request.group is not None:
            pids = self._host.in_group(request.group)
        seed = f"{self._host.seed} {act.number} {'trigger' if request is None else 'policy'}"
        return self._host.view_for(lambda: random.Random(seed), self._rates, pids)

    def _ask(self, name: str, act: _Act, watch: Watch) -> ReclaimRequest | None:
        trigger, plugin = self._triggers[name], ("trigger", name)
        try:
            request = watch.call(plugin, trigger.request, self._view(act), act.moment)
            if request is not None:
                request = self._checked_request(request, act.moment)
        except BaseException as error:
            self._caught(plugin, error)
            return None
        if request is not None:
            self._conduct.served(plugin)
        return request

    def _checked_request(self, request: Any, moment: Moment) -> ReclaimRequest:
        if not isinstance(request, ReclaimRequest):
            raise TypeError(f"request() returned {type(request).__name__}, not a ReclaimRequest")
        if not isinstance(request.kinds, Kinds) or not request.kinds:
            raise ValueError(f"asked for kinds {request.kinds!r}")
        if request.bytes_wanted is not None and _whole("bytes_wanted", request.bytes_wanted) <= 0:
            raise ValueError(f"asked for {request.bytes_wanted} bytes")
        if request.pid is not None:
            self._host.process(_whole("pid", request.pid))
        elif request.group is None and moment.group is not None:
            return replace(request, group=moment.group)
        return request

    def _serve(self, act: _Act, watch: Watch) -> bool:
        """Follow a policy's choices until there is enough. False where it failed."""
        assert act.request is not None
        plugin = ("policy", act.policy)
        view = self._view(act, act.request)
        try:
            for pid, kinds, nbytes in self._choices(act, plugin, view, watch):
                limits = [limit for limit in (act.left, nbytes) if limit is not None]
                try:
                    empty, zero, mixed = self._host.free_ptes(pid, kinds, min(limits) if limits else None)
                except NoSuchMm:
                    if not view.shown(pid) and pid != act.request.pid:
                        raise  # the policy made it up
                    continue  # it ended since the policy looked
                except Refused as error:
                    act.refused = error
                    continue
                act.sums.update(empty=empty, zero=zero, mixed=mixed)
                if empty + zero + mixed:
                    act.freed.append((pid, empty + zero + mixed))
        except BaseException as error:
            self._caught(plugin, error)
            return False
        self._conduct.served(plugin)
        return True

    def _choices(
        self, act: _Act, plugin: Plugin, view: ShownView, watch: Watch
    ) -> Iterator[tuple[int, Kinds, int | None]]:
        """The policy's choices as (pid, kinds, bytes), checked, as long as something is wanted."""
        request = act.request
        assert request is not None
        choices = watch.call(plugin, iter, watch.call(plugin, self._policies[plugin[1]].choose, view, request))
        step, close = choices.__next__, getattr(choices, "close", None)
        empty_handed = 0
        try:
            while act.left is None or act.left > 0:
                try:
                    choice = watch.call(plugin, step)
                except StopIteration:
                    return
                before = act.bytes
                yield self._checked_choice(choice, request, view)
                empty_handed = empty_handed + 1 if act.bytes == before else 0
                if empty_handed > SPARE_CHOICES + 2 * self._host.mms:
                    raise ValueError(f"made {empty_handed} choices in a row that freed nothing")
        finally:
            if close is not None:
                watch.call(plugin, close)

    def _checked_choice(self, choice: Any, request: ReclaimRequest, view: ShownView) -> tuple[int, Kinds, int | None]:
        if not isinstance(choice, Choice):
            raise TypeError(f"choose() yielded {type(choice).__name__}, not a Choice")
        pid = _whole("pid", choice.pid)
        if request.pid is not None and pid != request.pid:
            raise ValueError(f"chose pid {pid} where pid {request.pid} was asked for")
        if request.group is not None and not view.shown(pid) and self._host.group_of(pid) != request.group:
            raise ValueError(f"chose pid {pid}, which is not in the group {request.group!r} that was asked for")
        if not isinstance(choice.kinds, Kinds | None):
            raise TypeError(f"chose kinds {choice.kinds!r}")
        if choice.bytes is not None and _whole("bytes", choice.bytes) < 0:
            raise ValueError(f"chose {choice.bytes} bytes")
        return pid, request.kinds if choice.kinds is None else choice.kinds & request.kinds, choice.bytes

    def _result(self, act: _Act, *, failed: bool = False) -> ReclaimResult:
        assert act.request is not None
        left = act.left
        outcome = "done" if left is None or left <= 0 else "partly"
        if act.bytes == 0:
            outcome = "failed" if failed else "nothing"
        return ReclaimResult(
            trigger=act.trigger,
            policy=act.policy or DEFAULT_POLICY,
            request=act.request,
            empty_bytes=act.sums["empty"],
            zero_bytes=act.sums["zero"],
            mixed_bytes=act.sums["mixed"],
            freed=tuple(act.freed),
            seconds=time.perf_counter() - act.started,
            outcome=outcome,
            time_ns=act.moment.time_ns,
        )

    # ---- what is told -------------------------------------------------------------------------

    def _caught(self, plugin: Plugin, error: BaseException) -> None:
        """What a plugin's call raised: its failure, but for what is not its own."""
        if isinstance(error, Abandoned) or (self._deadline is None and isinstance(error, KeyboardInterrupt)):
            raise error
        self._failed(plugin, error)

    def _failed(self, plugin: Plugin, error: BaseException) -> None:
        kind, name = plugin
        aside = self._conduct.failed(plugin, error, may_go=plugin != ("policy", DEFAULT_POLICY))
        self._log.error("plugin failed", kind=kind, plugin=name, error=plain(error))
        if aside:
            self._log.error("plugin put aside", kind=kind, plugin=name)

    def _note(self, result: ReclaimResult, refused: Refused | None) -> None:
        """Count and log one act."""
        kinds = {"empty": result.empty_bytes, "zero": result.zero_bytes, "mixed": result.mixed_bytes}
        for kind, number in kinds.items():
            if number or kind != "mixed":
                self.totals[result.trigger, result.policy, kind] += number
        self.runs[result.trigger, result.policy, result.outcome] += 1
        more: dict[str, Any] = {"mixed_bytes": result.mixed_bytes} if Kinds.MIXED in result.request.kinds else {}
        about: dict[str, Any] = {"pid": result.request.pid, "group": result.request.group}
        more |= {key: value for key, value in about.items() if value is not None}
        if refused is not None:
            more["refused"] = str(refused)
        self._log.info(
            "reclaimed",
            trigger=result.trigger,
            policy=result.policy,
            kinds=result.request.kinds.text,
            empty_bytes=result.empty_bytes,
            zero_bytes=result.zero_bytes,
            mms=len(result.freed),
            outcome=result.outcome,
            seconds=round(result.seconds, 6),
            **more,
        )
        for observer in self._observers:
            observer(result)

    def _listeners(self, act: _Act) -> Iterator[tuple[Plugin, Callable[[ReclaimResult], object]]]:
        """Who of the plugins is told of the act's result."""
        assert act.result is not None
        for kind, name, seats in (("trigger", act.trigger, self._triggers), ("policy", act.policy, self._policies)):
            if name and has_own(seats[name], "observe") and (kind, name) not in self._conduct.aside:
                yield (kind, name), seats[name].observe
        for implementation in self._plugins.observers():
            plugin = (OBSERVER, self._plugins.name_of(implementation))
            if plugin not in self._conduct.aside:
                yield plugin, _told(implementation)


def _given(seats: Seats, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values of tunables, None for a default. BadInput."""
    return {key: seats.default(name, key) if value is None else value for key, value in values.items()}


def _told(implementation: Any) -> Callable[[ReclaimResult], object]:
    """A hook's function, which may do without its argument."""
    return lambda result: implementation.function(*[result][: len(implementation.argnames)])


def _whole(what: str, number: Any) -> int:
    """A whole number of Python's or numpy's. TypeError."""
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{what} is {number!r}, no whole number")
    return int(number)
