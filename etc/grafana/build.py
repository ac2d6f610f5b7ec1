"""Writes etc/grafana/dashboards: `make dashboards`. tests/prometheus/test_dashboards.py sees that they are up to date.

Built with grafana-foundation-sdk, whose types are those of Grafana 10.1 and later. docs/dashboards.md shows the panels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common as shown
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

HERE = Path(__file__).resolve().parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
BYTES, RATIO, SECONDS, COUNT, BYTES_A_SECOND, PER_SECOND = "bytes", "percentunit", "s", "short", "binBps", "ops"
ALL = "$__all"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel. queries: (expression, legend).  unit: Grafana's id of it.  style: lines, stacked, bars or stat."""

    title: str
    about: str
    unit: str
    queries: Sequence[tuple[str, str]]
    style: str = "lines"
    width: int = 8


@dataclass(frozen=True, slots=True)
class Variable:
    """A template variable: a label's values of some series. many: several of them, and all, may be chosen."""

    name: str
    label: str
    series: str
    about: str
    many: bool = True


@dataclass(frozen=True, slots=True)
class Page:
    """A dashboard."""

    name: str
    title: str
    about: str
    variables: Sequence[Variable]
    panels: Sequence[Panel]


# -- variables ------------------------------------------------------------------------------------------

HOST_KIND = Variable("host_kind", "host_kind", "pterefd_build_info", "simulated, or live.", many=False)
INSTANCE = Variable("instance", "instance", 'pterefd_build_info{host_kind="$host_kind"}', "Daemons.")
COMM = Variable(
    "comm",
    "comm",
    'pterefd_mm_pgtables_bytes{host_kind="$host_kind", instance=~"$instance"}',
    "Names of processes.",
)
PID = Variable(
    "pid",
    "pid",
    'pterefd_mm_pgtables_bytes{host_kind="$host_kind", instance=~"$instance", comm=~"$comm"}',
    "Pids, of those with series of their own.",
)
POLICY = Variable(
    "policy",
    "policy",
    'pterefd_reclaim_runs_total{host_kind="$host_kind", instance=~"$instance"}',
    "Policies that have reclaimed, or may.",
)

# -- selectors --------------------------------------------------

H = 'host_kind="$host_kind", instance=~"$instance"'
MM = f'{H}, comm=~"$comm", pid=~"$pid"'
P = f'{H}, policy=~"$policy"'
FREEABLE = 'kind=~"empty|zero"'
HOST = Page(
    "host",
    "pterefd: host",
    "Page tables of a host, what of them could be freed, and what memory is short of.",
    (HOST_KIND, INSTANCE),
    (
        Panel(
            "Page tables",
            "PTE, PMD and PUD pages of all mms.",
            BYTES,
            [(f"sum (instance:pterefd_mm_pgtables_bytes:sum{{{H}}})", "page tables")],
            "stat",
            4,
        ),
        Panel(
            "Reclaimable",
            "Empty and zero PTE pages: what free_ptes would free now.",
            BYTES,
            [(f"sum (instance:pterefd_mm_reclaimable_pt_bytes:sum{{{H}, {FREEABLE}}})", "reclaimable")],
            "stat",
            4,
        ),
        Panel(
            "Reclaimable, of memory",
            "PterefdReclaimableMemory fires over 2 % for an hour.",
            RATIO,
            [(f"max (instance:pterefd_mm_reclaimable_pt_bytes:ratio_memory{{{H}}})", "of memory")],
            "stat",
            4,
        ),
        Panel("Mms", "Address spaces on the host.", COUNT, [(f"sum (pterefd_host_mms{{{H}}})", "mms")], "stat", 4),
        Panel(
            "Freed in all",
            "Bytes of PTE pages, since the daemon began.",
            BYTES,
            [(f"sum (pterefd_reclaimed_pt_bytes_total{{{H}}})", "freed")],
            "stat",
            4,
        ),
        Panel(
            "Kills",
            "Of the OOM killer, since the daemon began.",
            COUNT,
            [(f"sum (pterefd_oom_kills_total{{{H}}})", "kills")],
            "stat",
            4,
        ),
        Panel(
            "Page-table memory",
            "What all mms have of it, and what of that describes nothing.",
            BYTES,
            [
                (f"sum by (instance) (instance:pterefd_mm_pgtables_bytes:sum{{{H}}})", "page tables, {{instance}}"),
                (
                    f"sum by (instance) (instance:pterefd_mm_reclaimable_pt_bytes:sum{{{H}, {FREEABLE}}})",
                    "reclaimable, {{instance}}",
                ),
            ],
        ),
        Panel(
            "Reclaimable by kind",
            "No entry set (empty), 512 zero-page entries (zero); those with zero-page entries and none (mixed) stay.",
            BYTES,
            [(f"sum by (kind) (instance:pterefd_mm_reclaimable_pt_bytes:sum{{{H}}})", "{{kind}}")],
            "stacked",
        ),
        Panel(
            "Largest by reclaimable bytes",
            "The ten mms with most to free.",
            BYTES,
            [
                (
                    f"topk (10, sum by (pid, comm) (pterefd_mm_reclaimable_pt_bytes{{{H}, {FREEABLE}}}))",
                    "{{comm}} ({{pid}})",
                )
            ],
        ),
        Panel(
            "Free memory and its watermarks",
            "kswapd works from low to high, direct reclaim begins at min.",
            BYTES,
            [
                (f'sum by (instance) (pterefd_host_memory_bytes{{{H}, state="free"}})', "free, {{instance}}"),
                (f"max by (mark) (pterefd_host_watermark_bytes{{{H}}})", "{{mark}}"),
            ],
        ),
        Panel(
            "What holds memory",
            "Anonymous memory, page cache, shared memory, page tables.",
            BYTES,
            [(f'sum by (state) (pterefd_host_memory_bytes{{{H}, state!~"total|free"}})', "{{state}}")],
            "stacked",
        ),
        Panel(
            "Groups",
            "What a group holds, page cache left out, and its limit.",
            BYTES,
            [
                (f"sum by (group) (group:pterefd_group_memory_bytes:sum_kept{{{H}}})", "{{group}}"),
                (f'sum by (group) (pterefd_group_memory_bytes{{{H}, state="limit"}}) > 0', "{{group}}, limit"),
            ],
        ),
        Panel(
            "Reclaim by trigger and policy",
            "Bytes of PTE pages freed a second.",
            BYTES_A_SECOND,
            [
                (
                    f"sum by (trigger, policy) (rate(pterefd_reclaimed_pt_bytes_total{{{H}}}[$__rate_interval]))",
                    "{{trigger}}, {{policy}}",
                )
            ],
            "stacked",
        ),
        Panel(
            "Acts of reclaim",
            "A second, by outcome: all that was wanted (done), a part of it, nothing; failed.",
            PER_SECOND,
            [
                (
                    f"sum by (trigger, outcome) (rate(pterefd_reclaim_runs_total{{{H}}}[$__rate_interval]))",
                    "{{trigger}}, {{outcome}}",
                )
            ],
        ),
        Panel(
            "Time of an act",
            "Wall time, median and 99th percentile.",
            SECONDS,
            [
                (
                    f"histogram_quantile ({q}, sum by (le) "
                    f"(rate(pterefd_reclaim_duration_seconds_bucket{{{H}}}[$__rate_interval])))",
                    name,
                )
                for q, name in ((0.5, "median"), (0.99, "99th percentile"))
            ],
        ),
        Panel(
            "Kills by group",
            "Of the OOM killer, by the group at its limit; the host's without one.",
            COUNT,
            [(f"sum by (group) (increase(pterefd_oom_kills_total{{{H}}}[$__rate_interval]))", "kills {{group}}")],
            "bars",
        ),
        Panel(
            "What memory pressure does",
            "Pages a second that reclaim takes and swaps out, and stalls of who allocates.",
            PER_SECOND,
            [
                (
                    "sum by (name) (rate(pterefd_vmstat_total"
                    f'{{{H}, name=~"pgsteal_kswapd|pgsteal_direct|pswpout|pswpin|allocstall"}}[$__rate_interval]))',
                    "{{name}}",
                )
            ],
        ),
        Panel(
            "Swap",
            "Free, and all of it.",
            BYTES,
            [(f"sum by (state) (pterefd_host_swap_bytes{{{H}}})", "{{state}}")],
        ),
        Panel(
            "Events replayed",
            "A second, by op.",
            PER_SECOND,
            [(f"sum by (op) (rate(pterefd_replay_events_total{{{H}}}[$__rate_interval])) > 0", "{{op}}")],
        ),
        Panel(
            "Replays: stalled",
            "Wall time since a running replay got on; about a second is usual. PterefdReplayStalled fires over 60 s.",
            SECONDS,
            [(f"pterefd_replay_stalled_seconds{{{H}}}", "{{replay}} {{source}}")],
        ),
        Panel(
            "Plugins: errors",
            "Raised, or too late; since the daemon began. The five with most.",
            COUNT,
            [
                (f"topk (5, sum by (plugin) (pterefd_plugin_errors_total{{{H}}}))", "{{plugin}}"),
            ],
        ),
    ),
)

ONE_MM = Page(
    "mm",
    "pterefd: one mm",
    "One address space: its page tables beside what they describe.",
    (HOST_KIND, INSTANCE, COMM, PID),
    (
        Panel(
            "Page tables",
            "VmPTE and the PMD and PUD pages.",
            BYTES,
            [(f"pterefd_mm_pgtables_bytes{{{MM}}}", "{{comm}} ({{pid}})")],
        ),
        Panel(
            "PTE pages by kind",
            "Empty and zero ones can be freed.",
            BYTES,
            [(f"pterefd_mm_reclaimable_pt_bytes{{{MM}}}", "{{comm}} ({{pid}}), {{kind}}")],
            "stacked",
        ),
        Panel(
            "Resident memory",
            "By kind.",
            BYTES,
            [(f"pterefd_mm_resident_bytes{{{MM}}}", "{{comm}} ({{pid}}), {{kind}}")],
            "stacked",
        ),
        Panel(
            "Page tables, of resident memory",
            "0.2 % where every entry is used; PterefdPageTablesOfMm fires over 5 %.",
            RATIO,
            [(f"mm:pterefd_mm_pgtables_bytes:ratio_resident{{{MM}}}", "{{comm}} ({{pid}})")],
        ),
        Panel(
            "Reclaimable, of page tables",
            "How much of what it has describes nothing.",
            RATIO,
            [
                (
                    f"sum without (kind) (pterefd_mm_reclaimable_pt_bytes{{{MM}, {FREEABLE}}}) "
                    f"/ pterefd_mm_pgtables_bytes{{{MM}}}",
                    "{{comm}} ({{pid}})",
                )
            ],
        ),
        Panel(
            "Swapped out",
            "Anonymous memory.",
            BYTES,
            [(f"pterefd_mm_swap_bytes{{{MM}}}", "{{comm}} ({{pid}})")],
        ),
    ),
)

POLICIES = Page(
    "policies",
    "pterefd: policies compared",
    "What each policy has freed, what it cost, and what was killed: of the triggers of one daemon that have policies "
    "of their own, or of several daemons on the same recording.",
    (HOST_KIND, INSTANCE, POLICY),
    (
        Panel(
            "Freed",
            "Bytes of PTE pages, since the daemon began.",
            BYTES,
            [
                (
                    f"sum by (instance, policy) (pterefd_reclaimed_pt_bytes_total{{{P}}})",
                    "{{policy}}, {{instance}}",
                )
            ],
        ),
        Panel(
            "Freed a second, by trigger",
            "Over five minutes.",
            BYTES_A_SECOND,
            [(f"policy:pterefd_reclaimed_pt_bytes:rate5m{{{P}}}", "{{policy}}, {{trigger}}, {{instance}}")],
        ),
        Panel(
            "Freed in an act",
            "Bytes, on average since the daemon began.",
            BYTES,
            [
                (
                    f"sum by (instance, policy) (pterefd_reclaimed_pt_bytes_total{{{P}}}) "
                    f"/ sum by (instance, policy) (pterefd_reclaim_runs_total{{{P}}})",
                    "{{policy}}, {{instance}}",
                )
            ],
        ),
        Panel(
            "Acts by outcome",
            "Since the daemon began.",
            COUNT,
            [
                (
                    f"sum by (instance, policy, outcome) (pterefd_reclaim_runs_total{{{P}}})",
                    "{{policy}}, {{outcome}}, {{instance}}",
                )
            ],
        ),
        Panel(
            "Made again",
            "PTE pages that had to be made again after they were freed, short of an munmap; of each daemon.",
            BYTES,
            [
                (
                    f"sum by (instance) (pterefd_made_again_pt_bytes_total{{{H}}})",
                    "{{instance}}",
                )
            ],
        ),
        Panel(
            "Time of an act",
            "Wall time, on average; of each daemon.",
            SECONDS,
            [
                (
                    f"sum by (instance) (rate(pterefd_reclaim_duration_seconds_sum{{{H}}}[$__rate_interval])) "
                    f"/ sum by (instance) (rate(pterefd_reclaim_duration_seconds_count{{{H}}}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
        ),
        Panel(
            "Page tables, by the policy in charge",
            "Of each daemon, with the policies that serve its triggers.",
            BYTES,
            [
                (
                    f"max by (job, instance, policy) (pterefd_reclaim_policy_info{{{P}}}) "
                    f"* on (job, instance) group_left () instance:pterefd_mm_pgtables_bytes:sum{{{H}}}",
                    "{{policy}}, {{instance}}",
                )
            ],
        ),
        Panel(
            "Reclaimable and not reclaimed",
            "Of each daemon.",
            BYTES,
            [
                (
                    f"sum by (instance) (instance:pterefd_mm_reclaimable_pt_bytes:sum{{{H}, {FREEABLE}}})",
                    "{{instance}}",
                )
            ],
        ),
        Panel(
            "Kills",
            "Since the daemon began, by the group at its limit.",
            COUNT,
            [(f"sum by (instance, group) (pterefd_oom_kills_total{{{H}}})", "{{instance}} {{group}}")],
        ),
    ),
)

PAGES = (HOST, ONE_MM, POLICIES)


# -- how they are built --------------------------------------------------------------------------------


def variable(v: Variable) -> build.QueryVariable:
    """A query variable."""
    query = (
        build.QueryVariable(v.name)
        .label(v.label)
        .description(v.about)
        .datasource(SOURCE)
        .query(f"label_values({v.series}, {v.name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NUMERICAL_ASC if v.name == "pid" else VariableSort.ALPHABETICAL_ASC)
        .multi(v.many)
        .include_all(v.many)
    )
    if v.many:
        query = query.all_value(".+").current(VariableOption(selected=True, text=["All"], value=[ALL]))
    return query


def panel(p: Panel) -> stat.Panel | timeseries.Panel:
    """A panel with its queries."""
    if p.style == "stat":
        made = stat.Panel().graph_mode(BigValueGraphMode.AREA).height(4)
    else:
        legend = shown.VizLegendOptions().show_legend(True)
        legend = legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        made = timeseries.Panel().min(0).legend(legend).fill_opacity(0).height(8)
    if p.style == "stacked":
        made = made.fill_opacity(40).stacking(shown.StackingConfig().mode(StackingMode.NORMAL))
    elif p.style == "bars":
        made = made.draw_style(GraphDrawStyle.BARS).fill_opacity(80)
    made = made.title(p.title).description(p.about).unit(p.unit).datasource(SOURCE).span(p.width)
    for letter, (expression, legend_format) in zip("ABCDEFGH", p.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend_format).ref_id(letter)
        made = made.with_target(query.instant() if p.style == "stat" else query.range())
    return made


def page(p: Page) -> str:
    """A dashboard as JSON."""
    board = (
        build.Dashboard(p.title)
        .uid(f"pterefd-{p.name}")
        .description(p.about)
        .tags(["pterefd"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("pterefd")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["pterefd"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for v in p.variables:
        board = board.with_variable(variable(v))
    for number, one in enumerate(p.panels, 1):
        board = board.with_panel(panel(one).id(number))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2) + "\n"


def files() -> dict[Path, str]:
    """Every dashboard's file, and what stands in it."""
    return {HERE / "dashboards" / f"{p.name}.json": page(p) for p in PAGES}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
