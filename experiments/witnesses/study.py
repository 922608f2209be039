"""The protocol by witness: simplex, linear head, perceptron head; over all phases, with the guard and the pre-fit.

    python -m experiments.witnesses.study --data_dir data                           # CIFAR-100
    python -m experiments.witnesses.study --dataset tiny_imagenet --data_dir data
    python -m experiments.witnesses.study --quick                                   # scikit-learn's digits

Each witness runs ``certvae protocol`` on ``experiments/<dataset>.yaml`` with all phases and the same teacher. In
``no_align`` a trained head gets no gradient and stays at its constant start. ``ablate`` shows whether a trained head
returns to a constant output: its weights stay fixed there, while the code changes.
"""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from certvae.commands.protocol import WITNESSES, Protocol, run_protocol
from certvae.commands.summary import CERTIFIED, OPTIONAL_PHASES, PHASES
from certvae.commands.tables import Line, Results
from experiments.drawing import FIRST, SECOND, THIRD, legend_below, new_figure, styled
from experiments.protocol.study import certified, measure
from experiments.study import EXPERIMENTS, Study, protocol_dataset, protocol_parser

__all__ = ["claims", "main"]

LOOKS = {"simplex": FIRST, "head": SECOND, "perceptron": THIRD}
COLUMNS = {
    "seed": "{seed}",
    "witness": "{witness}",
    "phase": "{phase}",
    "status": "{status}",
    "`I_T`": "{teacher_information:.3f}",
    "margin": "{proven_margin:+.3f}",
    "at least, betting": "{proven_lower:+.3f}",
    "channel margin": "{channel_margin:+.3f}",
    "`I_S`": "{witness_information:.4f}",
    "rate": "{rate:.3f}",
    "squared error": "{mean_squared_error:.4f}",
    "escape force": "{escape_force:.4f}",
    "seconds": "{seconds:.0f}",
}


def protocols(study: Study, dataset: str, chosen: Sequence[str]) -> dict[str, Protocol]:
    """A protocol for each witness; all use the teachers of the first."""
    made: dict[str, Protocol] = {}
    phases = {name: EXPERIMENTS / dataset / f"{name}.yaml" for name in ("search", *PHASES, *OPTIONAL_PHASES)}
    for witness in chosen:
        first = next(iter(made.values()), None)
        teachers = None if first is None else tuple(first.searched_path(seed) for seed in study.seeds)
        made[witness] = Protocol.read(
            EXPERIMENTS / f"{dataset}.yaml",
            phases=phases,
            seeds=tuple(study.seeds),
            output_dir=str(study.folder / witness),
            witness=witness,
            teachers=teachers,
            max_epochs=study.given.max_epochs,
            alignment_path=study.given.alignment_path,
            data_dir=None if study.given.quick else study.given.data_dir,
        )
    return made


def line(protocol: Protocol, seed: int, phase: str) -> Line:
    """One line of the table: that of the protocol's study, and the escape force."""
    force = certified(protocol.seed_dir(seed) / phase, protocol.teacher_path(seed))[0].escape_force
    found = {"seed": seed, "witness": protocol.witness, **measure(protocol, seed, phase)}
    return {**found, "escape_force": None if force is None else round(force, 5)}


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """Whether each phase of each witness has the expected result by the proven bound."""
    shown = {}
    for witness in dict.fromkeys(item["witness"] for item in lines):
        for phase, expected in CERTIFIED.items():
            chosen = [item for item in lines if (item["witness"], item["phase"]) == (witness, phase)]
            if chosen:
                name = f"{witness}, {phase} is {'' if expected else 'not '}certified in every seed"
                status = "CERTIFIED" if expected else "NOT_CERTIFIED"
                shown[name] = all(item["proven_status"] == status for item in chosen)
    return shown


@styled
def draw(lines: Sequence[Line]) -> Figure:
    """Margin down to its proven bound, for each phase and witness, means over seeds; filled where all are certified."""
    phases, witnesses = (list(dict.fromkeys(item[key] for item in lines)) for key in ("phase", "witness"))
    title = "Margin by phase and witness, down to its proven lower bound"
    figure, (axes,) = new_figure(title, 8.5, 4.6)
    for number, witness in enumerate(witnesses):
        for place, phase in enumerate(phases):
            chosen = [item for item in lines if (item["witness"], item["phase"]) == (witness, phase)]
            margin, lower = fmean(item["proven_margin"] for item in chosen), min(i["proven_lower"] for i in chosen)
            at = place + 0.25 * (number - (len(witnesses) - 1) / 2)
            certified = all(item["proven_status"] == "CERTIFIED" for item in chosen)
            axes.plot([at, at], [lower, margin], color=LOOKS[witness].color)
            axes.plot(at, margin, **LOOKS[witness].style(certified))
    axes.axhline(0, color="black", linewidth=1)
    axes.set(ylabel="raw-witness margin, nats")
    axes.set_xticks(range(len(phases)), phases)
    looks = ((f"{name} (filled: certified)", LOOKS[name].style() | {"linestyle": ""}) for name in witnesses)
    legend_below(figure, looks, 3)
    return figure


def main(args: Sequence[str] | None = None) -> list[Line]:
    """Run the remaining runs, write table and figure, and return the table's lines."""
    parser = protocol_parser("witnesses", __doc__)
    parser.add_argument("--witnesses", nargs="+", choices=list(WITNESSES), default=list(WITNESSES))
    given = parser.parse_args(args)
    dataset, results = protocol_dataset(parser, given)
    seeds = range(1) if dataset == "tiny_imagenet" else range(3)
    study = Study("witnesses", given, seeds, results=f"witnesses_{results}")
    made = protocols(study, dataset, given.witnesses)
    for protocol in made.values():
        run_protocol(protocol)
        study.count(protocol.run(phase, seed) for seed in study.seeds for phase in protocol.names)
    lines = [line(p, seed, phase) for seed in study.seeds for p in made.values() for phase in p.names]
    study.report(Results(lines, COLUMNS, claims(lines), {study.results: draw(lines)}))
    return lines


if __name__ == "__main__":
    main()
