"""The mails' series as they are written, slowly: PTE pages as dicts of entries, references counted one by one.

For tests: private anonymous memory of one mm on v5.19's rules. What pieces a call falls into (mappings) is asked of
the model under test, which the kernel's own numbers of mappings hold to account elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

SPAN_PAGES = 512
NONE, ZERO, ANON, LAZY, SWAP = "none", "zero", "anon", "lazy", "swap"
READ = {NONE: ZERO, SWAP: ANON}
WRITE = {NONE: ANON, ZERO: ANON, SWAP: ANON, LAZY: ANON}

Pieces = Callable[[int, int], Iterator[tuple[int, int]]]  # page ranges of the mappings in [begin, end)


class Mm:
    """One mm. Pages are numbers: address / 4096.

    tables: PTE page by span, each a dict of its entries that are not none.
    """

    def __init__(self, profile: str, pieces: Pieces) -> None:
        self.profile = profile
        self.pieces = pieces
        self.mapped: set[int] = set()
        self.tables: dict[int, dict[int, str]] = {}
        self.atomic: set[int] = set()  # percpu-2022: spans whose percpu_ref is in atomic mode
        self.freed: set[int] = set()
        self.freed_by_itself = self.freed_on_request = self.again = 0
        self.updates = self.walks = self.rmap_locks = self.write_holds = 0  # docs/costs.md

    # ---- PTE pages --------------------------------------------------------------------------------

    def _page(self, span: int) -> dict[int, str]:
        if span not in self.tables:
            self.tables[span] = {}
            self.atomic.discard(span)
            self.again += span in self.freed
            self.freed.discard(span)
        return self.tables[span]

    def _free(self, span: int) -> None:
        del self.tables[span]
        self.freed.add(span)

    def _free_by_itself(self, span: int) -> None:
        self._free(span)
        self.freed_by_itself += 1

    def _put(self, span: int) -> None:
        """pte_put of Nov 2021: the last reference frees."""
        if self.profile == "atomic-2021" and not self.tables[span]:
            self._free_by_itself(span)

    def _try_to_free(self, span: int, switch_back: bool) -> None:
        """try_to_free_user_pte of Apr 2022."""
        if self.profile != "percpu-2022":
            return
        if not self.tables[span]:
            self._free_by_itself(span)
        elif switch_back:
            self.atomic.discard(span)
        else:
            self.atomic.add(span)

    def _spans(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(span, first page, end page) of every PTE page in [begin, end)."""
        for span in range(begin // SPAN_PAGES, (end - 1) // SPAN_PAGES + 1):
            if span in self.tables:
                yield span, max(begin, span * SPAN_PAGES), min(end, (span + 1) * SPAN_PAGES)

    # ---- operations ---------------------------------------------------------------------------------

    def map(self, begin: int, end: int) -> None:
        self.unmap(begin, end)
        self.mapped.update(range(begin, end))

    def touch(self, begin: int, end: int, write: bool) -> None:
        for page in range(begin, end):
            entries = self._page(page // SPAN_PAGES)
            state = entries.get(page, NONE)
            entries[page] = (WRITE if write else READ).get(state, state)
            self.updates += {(NONE, ZERO): 1, (NONE, ANON): 1, (ZERO, ANON): 2}.get((state, entries[page]), 0)
            self.walks += entries[page] != state and state != LAZY

    def dontneed(self, begin: int, end: int) -> None:
        for low, high in self.pieces(begin, end):
            for span, first, last in self._spans(low, high):
                self.walks += 1
                for page in range(first, last):
                    self.updates += self.tables[span].pop(page, None) is not None
                self._put(span)
                if span in self.tables:
                    self._try_to_free(span, True)

    def free(self, begin: int, end: int) -> None:
        for low, high in self.pieces(begin, end):
            for span, first, last in self._spans(low, high):
                entries = self.tables[span]
                lazy = False
                self.walks += 1
                for page in range(first, last):
                    if entries.get(page) in (ANON, LAZY):
                        self.updates += 2 * (entries[page] == ANON)
                        entries[page] = LAZY
                        lazy = True
                    elif entries.get(page) == SWAP:
                        del entries[page]
                        self.updates += 1
                self._put(span)
                if span in self.tables:
                    self._try_to_free(span, not lazy)

    def swap_out(self, begin: int, end: int, dropped: bool) -> None:
        for span, first, last in self._spans(begin, end):
            entries = self.tables[span]
            met = False
            for page in range(first, last):
                if entries.get(page) in (ANON, LAZY):
                    entries[page] = SWAP
                    met = True
                    self.walks += 1
                    self.updates += 1 if dropped else 2
                    if dropped:
                        del entries[page]
            self._put(span)
            if met and dropped and span in self.atomic and span in self.tables and not entries:
                self._free_by_itself(span)

    def unmap(self, begin: int, end: int) -> None:
        gone = sorted(self.mapped.intersection(range(begin, end)))
        if not gone:
            return
        self.mapped.difference_update(gone)
        for span in range(gone[0] // SPAN_PAGES, gone[-1] // SPAN_PAGES + 1):
            pages = range(span * SPAN_PAGES, (span + 1) * SPAN_PAGES)
            if span in self.tables:
                self.walks += 1
                self.updates += len(self.tables[span].keys() & set(gone))
            if self.mapped.isdisjoint(pages):
                self.tables.pop(span, None)
                self.freed.discard(span)
            elif span in self.tables:
                for page in gone:
                    self.tables[span].pop(page, None)
                self._put(span)

    def move(self, old: int, new: int, pages: int) -> None:
        """mremap of a range inside one mapping."""
        self.unmap(new, new + pages)
        self.mapped.update(range(new, new + pages))
        at, end = old, old + pages
        while at < end:
            to = new + at - old
            step = min(SPAN_PAGES - at % SPAN_PAGES, SPAN_PAGES - to % SPAN_PAGES, end - at)
            source, target = at // SPAN_PAGES, to // SPAN_PAGES
            if source in self.tables:
                if step == SPAN_PAGES and target not in self.tables:
                    entries = self.tables.pop(source)
                    self.tables[target] = {page - at + to: state for page, state in entries.items()}
                    (self.atomic.add if source in self.atomic else self.atomic.discard)(target)
                else:
                    into = self._page(target)
                    self.walks += 2
                    for page in range(at, at + step):
                        if page in self.tables[source]:
                            state = self.tables[source].pop(page)
                            into[page - at + to] = state
                            self.updates += 2
                    self._put(source)
                    self._put(target)
            at += step
        self.unmap(old, old + pages)

    # ---- what is left --------------------------------------------------------------------------------

    def kinds(self) -> tuple[list[int], list[int]]:
        """Spans of the empty and of the zero PTE pages."""
        empty = [span for span, entries in self.tables.items() if not entries]
        zero = [span for span, e in self.tables.items() if list(e.values()) == [ZERO] * SPAN_PAGES]
        return empty, zero

    def _met(self, begin: int, end: int) -> int:
        """Pairs of a mapping and a PTE page of which it has a part, among the pages [begin, end)."""
        return sum(1 for low, high in self.pieces(begin, end) for _ in self._spans(low, high))

    def free_ptes(self) -> None:
        if self.mapped:
            self.write_holds += self._met(min(self.mapped), max(self.mapped) + 1)
        empty, zero = self.kinds()
        if self.profile == "rfc-2022-empty":
            zero = []
        for span in empty + zero:
            if self.profile == "rfc-2022-aligned":
                covered = [low for low, _ in self.pieces(span * SPAN_PAGES, (span + 1) * SPAN_PAGES)]
                if len(covered) != 1 or not self.mapped.issuperset(range(span * SPAN_PAGES, (span + 1) * SPAN_PAGES)):
                    continue
            self.rmap_locks += self._met(span * SPAN_PAGES, (span + 1) * SPAN_PAGES)
            self._free(span)
            self.freed_on_request += 1
