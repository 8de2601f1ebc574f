"""What a run does when a guard sounds (driver/guards.py): say so, stop, or go back to a checkpoint.

Functions of a `Run` (driver/run.py).
"""

from __future__ import annotations

from driver import checkpoint
from driver.checkpoint import CHECKPOINTS
from driver.run import Run, RunState, Stopped
from tasks.archive import Archive


class RollBack(Exception):
    """A guard asks for the weights of before. Ends the loops of the stage, which then begins again."""


def apply_alerts(run: Run) -> None:
    """Reports the alarms since the last call. Raises Stopped or RollBack where one asks for it, Stopped first."""
    alarms = run.guards.take()
    for alarm in alarms:
        run.tracker.log("guards", alarm.step, {alarm.metric: alarm.value})
        run.tracker.screen.note(str(alarm), "yellow")
    asked = {alarm.action for alarm in alarms}
    if "stop" in asked:
        raise Stopped
    if "roll_back" in asked:
        raise RollBack


async def roll_back(run: Run, name: str) -> None:
    """Gives the policies of stage `name` the weights, momenta and baselines of the newest checkpoint that verifies.
    Plays that are waiting for a learner were made by the weights that are given up: they stay recorded and train
    nobody. The archive of proposals goes back too; steps, versions and updates count on. Raises Stopped where no
    checkpoint verifies."""
    policies = run.trained_in(run.config.stages[name])
    folder = checkpoint.newest_valid(run.dir / CHECKPOINTS)
    if folder is None or not all((folder / policy / "state").is_dir() for policy in policies):
        run.tracker.screen.note("no checkpoint of this stage verifies: nothing to go back to", "red")
        raise Stopped
    state = RunState.read(folder)
    dropped = run.ledger.drop_waiting()
    for policy in policies:
        learner, served = run.learners[policy], run.system.served[policy]
        await learner.load(str(folder / policy / "state"))
        await run.system.push(policy, served.version + 1, await learner.export_ref())
        run.versions[policy] = served.version
        run.baselines[policy] = state.baselines.get(policy, {})
    run.archives[name] = Archive.restore(state.archives[name])
    run.guards.rolled_back()
    step = run.progress[name].step
    lost = step - (state.progress[name].step if name in state.progress else 0)
    run.tracker.log("guards", step, {"rolled_back_steps": float(lost), "dropped_plays": float(dropped)})
    run.tracker.screen.note(f"{name}: back to {folder.name}, {lost} steps before step {step}", "yellow")
    await run.save()  # what is resumed must not go back behind this
