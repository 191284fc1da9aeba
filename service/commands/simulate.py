"""`convoy simulate`: simulates the scheduler under a load, on a virtual clock."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from convoy.service.bench.plan import Spacing
from convoy.service.commands.options import Json, check_picture, duration
from convoy.service.commands.terminal import bar, console, milliseconds, numbers_table
from convoy.service.config import PolicyName
from convoy.service.errors import BadConfig
from convoy.service.text import NoText, decoded

if TYPE_CHECKING:
    from convoy.service.bench.simulation import Outcome
    from convoy.service.engine.profiles import Profile

Load = Literal[Spacing, "trace"]
_POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
_COLUMNS = 48  # of the longest bar


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one policy. Rates per second; latencies in seconds, of answered requests."""

    policy: str
    goodput: float
    of_oracle: float
    in_time: float  # shares of all requests
    late: float
    refused: float
    dropped: float
    p50: float
    p99: float
    mean_batch: float


def simulate(
    *,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Batch times from a profile.json.")
    ] = None,
    times: Annotated[
        str, typer.Option("--times", metavar="N:MS,...", help="Batch times by hand, such as 1:6.3,32:39.8.")
    ] = "",
    load: Annotated[Load, typer.Option("--load", help="Arrival process; trace reads --trace.")] = "poisson",
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="R", min=0.001, help="Requests a second.  [default: by --offered]")
    ] = None,
    offered: Annotated[
        float, typer.Option("--offered", metavar="X", min=0.001, help="Rate as a multiple of the oracle's throughput.")
    ] = 1.0,
    variation: Annotated[
        float,
        typer.Option("--variation", metavar="CV", min=0.01, help="For gamma: coefficient of variation of the gaps."),
    ] = 2.0,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Arrival times in seconds, one per line, for trace.")
    ] = None,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="TIME", parser=duration(0.0001), help="Deadline of each request.")
    ] = 0.1,
    requests: Annotated[int, typer.Option("--requests", metavar="N", min=1, help="Number of requests.")] = 100_000,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", metavar="NAME", help=f"Only this one of {', '.join(_POLICIES)}; repeat it for several."
        ),
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, max=1024, help="Largest batch of every policy.")
    ] = 64,
    max_queue_delay: Annotated[
        float,
        typer.Option("--max-queue-delay", metavar="TIME", parser=duration(0), help="Longest queue delay."),
    ] = 0.005,
    jitter: Annotated[
        float, typer.Option("--jitter", metavar="X", min=0, help="Relative standard deviation of batch times.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed of the requests.")] = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw all policies side by side.")
    ] = None,
    json: Json = False,
) -> None:
    """Simulate the scheduler under a synthetic load, and compare it with other policies and an oracle."""
    check_picture(picture)
    measured = _measured(profile, times)
    arrivals = _arrivals(trace, load)
    policies = _policies(policy or [])

    from convoy.service.bench import simulation
    from convoy.service.bench.simulation import Stream
    from convoy.service.engine.scheduler.request_queue import Limits

    best = simulation.oracle(
        Stream("model", measured, Limits(max_batch_size, 0, 1), deadline, 1.0).seconds, max_batch_size, deadline
    )
    if not best and rate is None:
        raise BadConfig(f"one image takes more than half of the deadline of {deadline:g} s, want --rate R")
    outcomes: dict[str, Outcome] = {}
    for name in policies:
        limits = Limits(max_batch_size, max_queue_delay, requests, deadline, name)
        stream = Stream("model", measured, limits, deadline, rate or offered * best, load, variation, arrivals)
        (outcomes[name],) = simulation.simulate([stream], requests, seed, jitter=jitter)
    summaries = [summary(name, outcome, best) for name, outcome in outcomes.items()]
    outcome = next(iter(outcomes.values()))
    title = f"{outcome.offered:,} requests in {outcome.seconds:,.1f} s, {load}"
    if picture is not None:
        from convoy.service.commands import charts

        charts.draw_simulation(outcomes, best, deadline, title, picture)
    if json:
        print(msgspec.json.encode(summaries).decode())
        return
    terminal = console()
    terminal.print(title)
    terminal.print(_table(summaries))
    terminal.print("answered in time")
    terminal.print(_bars(summaries, best))


def summary(policy: str, outcome: "Outcome", best: float) -> Summary:
    """The results of one policy; `best` is the oracle's goodput."""
    import numpy as np

    latencies = np.array(outcome.latencies or [0.0])
    return Summary(
        policy=policy,
        goodput=outcome.goodput,
        of_oracle=outcome.goodput / best if best else 0.0,
        in_time=outcome.in_time / outcome.offered,
        late=outcome.late / outcome.offered,
        refused=outcome.refused / outcome.offered,
        dropped=outcome.dropped / outcome.offered,
        p50=float(np.quantile(latencies, 0.5)),
        p99=float(np.quantile(latencies, 0.99)),
        mean_batch=outcome.mean_batch,
    )


def _policies(names: list[str]) -> list[PolicyName]:
    for name in names:
        if name not in _POLICIES:
            raise BadConfig(f"--policy {name!r}, want one of {', '.join(_POLICIES)}")
    return [name for name in _POLICIES if name in names or not names]


def _read(file: Path) -> "Profile":
    try:
        data = decoded(file.read_bytes())

        from convoy.service.engine.profiles import Profile

        profiles = msgspec.json.decode(data, type=list[Profile])
    except (OSError, NoText, msgspec.MsgspecError) as error:
        raise BadConfig(f"{file} is no profile: {getattr(error, 'strerror', None) or error}") from None
    profiles = [each for each in profiles if each.machine.instances == 1] or profiles  # others may be in it
    if len(profiles) != 1:
        raise BadConfig(f"{file} has {len(profiles)} shapes, want one: set the times of one of them with --times")
    return profiles[0]


def _measured(profile: Path | None, times: str) -> dict[int, float]:
    if (profile is None) == (not times):
        raise BadConfig("want either --profile FILE or --times N:MS,...")
    if profile is not None:
        return _read(profile).seconds
    try:
        pairs = [part.split(":") for part in times.split(",")]
        seconds = {int(size): float(ms) / 1000 for size, ms in pairs}
    except ValueError:
        seconds = {}
    if not seconds or min(seconds) < 1 or min(seconds.values()) <= 0:
        raise BadConfig(f"--times {times!r}, want sizes and milliseconds such as 1:6.3,32:39.8")
    return seconds


def _arrivals(trace: Path | None, load: Load) -> tuple[float, ...]:
    if (load == "trace") != (trace is not None):
        raise BadConfig("--load trace and --trace FILE require each other")
    if trace is None:
        return ()
    try:
        arrivals = tuple(float(line) for line in decoded(trace.read_bytes()).split())
    except ValueError as error:
        raise BadConfig(f"{trace}: {error}") from None
    if not arrivals or list(arrivals) != sorted(arrivals):
        raise BadConfig(f"{trace} contains {len(arrivals)} times, want at least one, in ascending order")
    return arrivals


def _table(summaries: list[Summary]) -> Table:
    table = numbers_table("policy", "in time", "late", "refused", "dropped", "p50 ms", "p99 ms", "batch")
    for each in summaries:
        shares = (f"{share:.2%}" for share in (each.in_time, each.late, each.refused, each.dropped))
        table.add_row(each.policy, *shares, milliseconds(each.p50), milliseconds(each.p99), f"{each.mean_batch:.1f}")
    return table


def _bars(summaries: list[Summary], best: float) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    rates = [(each.policy, each.goodput) for each in summaries]
    most = max(best, *(rate for _, rate in rates)) or 1.0
    for name, rate in (*rates, ("oracle", best)):
        table.add_row(name, f"{rate:,.1f}/s", Text(bar(rate / most, _COLUMNS).rstrip()))
    return table
