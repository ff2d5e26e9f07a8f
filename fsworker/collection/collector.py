"""Collections: check, plan the whole store, and only then move, shard by shard.

Theory of operation. A collection pins the keep-sets that it found at its beginning. First it reads all of them, checks
every digest, and plans every shard: a keep-set that is broken anywhere, or a plan that is too large, refuses before
anything has moved. Then it goes through the shards again, plans each anew from the same keep-sets, restores from trash
what an application keeps, and moves what goes; each move looks at the age again, under the shard's exclusive lock. So
memory is that of one shard, whatever the size of the store and of the keep-sets (trash takes 24 bytes a file).

The second plan of a shard cannot be larger than the first: keep-sets and cutoff are the same, and the ctime only grows.

A *run* may be done in parts, each short. Between parts it is a note in the store, ``Lock/collection.json``: the pinned
manifests, the phase, the next shard. A part that is done twice does nothing the second time; a run that was killed is
taken up where it stopped, if its keep-sets are still those in force, else the next one begins anew. Every part judges
everything again first: registry, clocks, ages, hold. One collection or purge at a time (a lock that dies with its
process); whoever finds the lock taken is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from fsworker.collection.basis import Basis, Clocks, Rules, broken, judge_keep_sets, judge_plan, rules_of
from fsworker.collection.plan import Plan, StoredFile, Tally, plan_collection
from fsworker.collection.runs import NOTE, SHARDS, Run, read_run
from fsworker.collection.turn import alone, refuse_hold
from fsworker.config import Settings
from fsworker.errors import CollectionRefusedError, Refusal
from fsworker.keepsets.accepted import note_accepted, read_accepted
from fsworker.keepsets.form import BrokenKeepSetError
from fsworker.keepsets.reader import Found, KeepReader
from fsworker.model import Hash
from fsworker.store import layout
from fsworker.store.clock import observe
from fsworker.store.handle import explain
from fsworker.store.notes import remove_note, write_note
from fsworker.store.objects import ObjectStore
from fsworker.store.trash import move_to_trash, open_run, restore
from fsworker.store.trashlist import TrashIndex

log = logging.getLogger(__name__)

_LOOK_FOR_HOLD_EVERY = 32
_TICK_S = 0.01
"""The kernel's clock for ctimes may be so much behind (a tick, at 100 Hz)."""

OnPlan = Callable[[Plan], None]
OnProgress = Callable[[str, int, int], None]


class Collector:
    """Collections of one store by the keep-sets that ``reader`` reads. Methods raise :class:`CollectionRefusedError`."""

    def __init__(
        self, store: ObjectStore, reader: KeepReader, settings: Settings, overrides: Iterable[str] = ()
    ) -> None:
        self.store = store
        self.reader = reader
        self.settings = settings
        self._overrides = tuple(overrides)

    # -- checks ----------------------------------------------------------------------------------------------------

    def rules(self, overrides: Iterable[str] = ()) -> Rules:
        """The rules for this store."""
        config = self.store.reload()
        return rules_of(config.store_id, self.store.grace_s, self.settings, {*self._overrides, *overrides})

    def clocks(self) -> Clocks:
        """Look at all clocks, and note a step. Raises :class:`StoreUnavailableError`, :class:`RedisUnavailableError`."""
        try:
            record = observe(self.store)
            before_s, redis_s, after_s = min((self._measure() for _ in range(3)), key=lambda times: times[2] - times[0])
        except OSError as error:
            raise explain(error, "Looking at the clock", self.store) from error
        least_s, most_s = redis_s - after_s - _TICK_S, redis_s - before_s
        return Clocks(after_s, redis_s, least_s, most_s, record.floor_s, record.reason)

    def _measure(self) -> tuple[float, float, float]:
        """The store's clock, Redis's, and the store's again."""
        return self.store.probe_clock(), self.reader.time_s(), self.store.probe_clock()

    def basis(self) -> Basis:
        """Judge the keep-sets in force."""
        rules = self.rules()
        self.refuse_hold()
        return judge_keep_sets(self._found(), read_accepted(self.store), self.clocks(), rules)

    def refuse_hold(self) -> None:
        """Refuse while a hold is in force."""
        refuse_hold(self.store)

    def _found(self) -> list[Found]:
        return self.reader.find(self.store.config.app_names)

    def _still(self, run: Run) -> Basis:
        """Judge the keep-sets that a run has pinned, as they are now. What was registered since must be heard, too."""
        rules = self.rules(run.overrides)
        self.refuse_hold()
        self._refuse_changed_registry(run)
        found = [Found(manifest.app, manifest) for manifest in run.manifests]
        basis = judge_keep_sets(found, read_accepted(self.store), self.clocks(), rules)
        return replace(basis, cutoff_s=min(basis.cutoff_s, run.cutoff_s))

    def _refuse_changed_registry(self, run: Run) -> None:
        if self.store.reload().app_names != sorted(manifest.app for manifest in run.manifests):
            raise CollectionRefusedError(
                Refusal(
                    "apps_changed",
                    f"the registered applications changed while collection {run.stamp} ran, and it did not hear them all; "
                    f"it ends here, and the next one begins anew",
                )
            )

    # -- one shard -------------------------------------------------------------------------------------------------

    def plan_shard(self, basis: Basis, shard: int, trash: TrashIndex) -> Plan:
        """Plan a shard. Raises :class:`CollectionRefusedError` when a keep-set's shard is broken."""
        names = {bytes.fromhex(name) for name in self.store.names_in(f"{shard:02x}")}
        trashed = trash.names(shard) - names
        kept: set[bytes] = set()
        for manifest in basis.manifests:
            try:
                kept |= self.reader.marked(manifest, shard, names | trashed)
            except BrokenKeepSetError as error:
                raise CollectionRefusedError(broken(manifest.app, str(error))) from None
        unkept = self._files(sorted(names - kept))
        plan = plan_collection(unkept, frozenset(), basis.cutoff_s, basis.floor_s)
        count = len(names & kept)
        return replace(
            plan, kept=count, files=plan.files + count, restore=tuple(Hash(raw.hex()) for raw in sorted(trashed & kept))
        )

    def _files(self, names: Sequence[bytes]) -> Iterator[StoredFile]:
        for raw in names:
            name = Hash(raw.hex())
            status = self.store.status(name)
            if status is not None:
                yield StoredFile(name, status.st_ctime, status.st_mtime, status.st_size, status.st_nlink)

    def act(self, plan: Plan, stamp: str, cutoff_s: float) -> Tally:
        """Carry out the plan of a shard: restore, then move. Doing it again does no harm."""
        tally = Tally()
        for name in plan.restore:
            self.refuse_hold()
            back = restore(self.store, name)
            tally += Tally(restored=1) if back else Tally(rotten=1)
        if plan.trash:
            open_run(self.store, stamp)
        for number, file in enumerate(plan.trash):
            if number % _LOOK_FOR_HOLD_EVERY == 0:
                self.refuse_hold()
            if move_to_trash(self.store, file.name, stamp, cutoff_s):
                tally += Tally(trashed=1, trashed_bytes=file.size_bytes)
            else:
                tally += Tally(spared=1)
        return tally

    # -- runs ------------------------------------------------------------------------------------------------------

    def dry_run(self, on_plan: OnPlan | None = None, on_progress: OnProgress | None = None) -> Run:
        """Plan everything, change nothing. A plan that is too large raises after it was told to ``on_plan``."""
        with self.alone():
            run, basis = self._new_run()
            run = self._plan(run, basis, float("inf"), on_plan, on_progress)
            judge_plan(run.tally.trash, run.tally.files, self.rules(run.overrides))
            return run

    def collect(self, on_progress: OnProgress | None = None) -> Run:
        """A whole collection, or the rest of one that was interrupted."""
        run = self.part(None, float("inf"), on_progress)
        assert run is not None
        return run

    def part(self, stamp: str | None, budget_s: float, on_progress: OnProgress | None = None) -> Run | None:
        """Begin a run, or take up one that was interrupted (``stamp`` is ``None``), or go on with the run ``stamp``.

        Works for about ``budget_s`` (and for one shard, at least) and returns the run as it is then; ``None`` when that
        run is over, or was superseded.
        """
        with self.alone():
            run, basis = self._begin() if stamp is None else self._resume(stamp)
            if run is None or basis is None:
                return None
            deadline_s = time.monotonic() + budget_s
            if run.phase == "plan":
                run = self._plan(run, basis, deadline_s, None, on_progress)
                if run.shard < SHARDS:
                    return self._noted(run)
                judge_plan(run.tally.trash, run.tally.files, self.rules(run.overrides))
                note_accepted(self.store, run.manifests)
                run = self._noted(replace(run, phase="move", shard=0))
            run = self._move(run, basis, deadline_s, on_progress)
            if run.shard < SHARDS:
                return run
            remove_note(self.store, NOTE)
            return replace(run, phase="done")

    def alone(self) -> AbstractContextManager[None]:
        """Hold the lock of collections and purges. Raises :class:`CollectionRefusedError` when it is taken."""
        return alone(self.store)

    def _new_run(self) -> tuple[Run, Basis]:
        basis = self.basis()
        return Run(layout.stamp(self.store.probe_clock()), basis.cutoff_s, self._overrides, basis.manifests), basis

    def _begin(self) -> tuple[Run, Basis]:
        """A new run; or the interrupted one, when it rests on the keep-sets that are in force."""
        run, basis = self._new_run()
        old = read_run(self.store)
        if old is not None and old.manifests == run.manifests and set(old.overrides) <= set(run.overrides):
            log.info("taking up collection %s where it stopped", old.stamp)
            run, basis = old, replace(basis, cutoff_s=min(basis.cutoff_s, old.cutoff_s))
        else:
            self._noted(run)
        return run, basis

    def _resume(self, stamp: str) -> tuple[Run | None, Basis | None]:
        run = read_run(self.store)
        if run is None or run.stamp != stamp:
            return None, None
        return run, self._still(run)

    def _noted(self, run: Run) -> Run:
        write_note(self.store, NOTE, run.note(), sync=False)  # lost, it is only begun anew
        return run

    def _plan(
        self, run: Run, basis: Basis, deadline_s: float, on_plan: OnPlan | None, on_progress: OnProgress | None
    ) -> Run:
        trash = TrashIndex(self.store)
        while run.shard < SHARDS:
            plan = self.plan_shard(basis, run.shard, trash)
            if on_plan is not None:
                on_plan(plan)
            due = (*run.due, run.shard) if plan.trash or plan.restore else run.due
            tally = run.tally + Tally.of_plan(plan, basis.cutoff_s)
            run = replace(run, shard=run.shard + 1, due=due, tally=tally)
            if on_progress is not None:
                on_progress("plan", run.shard, SHARDS)
            if time.monotonic() > deadline_s:
                break
        return run

    def _move(self, run: Run, basis: Basis, deadline_s: float, on_progress: OnProgress | None) -> Run:
        due = [shard for shard in run.due if shard >= run.shard]
        if not due:
            return replace(run, shard=SHARDS)
        trash = TrashIndex(self.store)
        try:
            for shard in due:
                self._refuse_changed_registry(run)
                plan = self.plan_shard(basis, shard, trash)
                done = self.act(plan, run.stamp, basis.cutoff_s)
                run = self._noted(replace(run, shard=shard + 1, tally=run.tally + done))
                if on_progress is not None:
                    on_progress("move", run.shard, SHARDS)
                if shard != due[-1] and time.monotonic() > deadline_s:
                    return run
        finally:
            self.store.syncfs()
        return replace(run, shard=SHARDS)
