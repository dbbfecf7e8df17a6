"""docs/adversarial.md, made of the JSON of experiments/run.py, and its pictures.

python -m experiments.adversarial            writes the page
python -m experiments.adversarial --check    exits 1 where the page is not what the JSON gives
python -m experiments.adversarial --pictures --data-dir DIR    draws the pictures too

The strips are decoded by networks in the cache: settings of STRIPS have to have run on this
machine. Runs that are not there yet are absent from the page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepclust import _files
from deepclust.plots import FULL, _new_figure, _styled, cluster_colors
from experiments.run import HERE, load, plan
from experiments.settings import ACAIS, AUTOENCODERS, CHAIN, CLUSTERINGS, DATA, GRID, SETTINGS
from experiments.tables import Runs, commands, read, seconds, settle, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, dict[str, Runs]]

GUESS = 1 / 48 + 1 / 64  # the error in alpha of a critic that can tell nothing
MINUS = "\N{MINUS SIGN}"

NAMES = {
    **{"mlp": "fully connected", "denoising": "denoising", "conv": "convolutional"},
    **{"variational": "variational", "k-means": "k-means on codes", "abc-kl": "ABC, KL form"},
    **{name: name.upper() for name in ("dec", "idec", "dcn", "depict")},
    "vade": "VaDE",
}
# Without critic, with it: what is decoded between two codes of each.
STRIPS = {
    "conv": ("adv-k-means-conv", "adv-k-means-conv-critic"),
    "acai": ("acai-without-critic", "acai"),
}
PAIRS, STEPS = 6, 9  # drawn pairs of rows, images of a strip

HEAD = """\
# Adversarial training: does it help?

Written by `python -m experiments.adversarial` from the JSON in `experiments/results`. ACAI
trains an autoencoder against a critic ([ACAI](acai.md)), DCAN an encoder against a discriminator
([DCAN](dcan.md)). This page asks of the first whether it helps, with which methods and with
which autoencoders, and what it changes in the latent space; of the second, what a discriminator
in the place of a closed-form loss is worth.

Accuracy (ACC) is that of the best one-to-one map of clusters to classes, in percent, as is NMI.
Labels are read for the figures alone; no setting was chosen by them, and no run is left out.
Lengths follow from the number of rows, by the rules in `experiments/settings.py`.
"""

CRITIC = """\
## The critic, with other methods

Each cell is one method on one autoencoder, trained twice from the same seed: as it is, and with
`Interpolation()` in its pre-training and in its clustering. All methods of a seed and an
autoencoder begin with the same two networks, and the critic goes on from its pre-training too.
Differences are those within a seed. Networks are small, so that one core trains them: hidden
layers of 256 and 256, or convolutions to 16 and 32 channels, and a code of 10.

- **Denoising** is DEC's: each layer learns to undo dropout by itself, then the whole is trained.
  DEPICT's own autoencoder, with noise before every layer, stands there in its place, and without
  noise it would be another method: there is no DEPICT on the fully connected one.
- **Variational**: k-means, DEC, IDEC and DCN see the mean of such a code alone, which makes it a
  fully connected one. What has the variance in its loss is VaDE, and ABC in its KL form. Both
  begin, as VaDE was published, with the weights of a plain autoencoder.
- DEC has no reconstruction: there the critic's loss moves the encoder alone.
"""

LATENT = f"""\
### What changes in the latent space

Of the final embeddings, without and with the critic. *Silhouette*, of the clusters found: how
much nearer a row is to its own cluster than to the next. *Between classes*: the share of the
variance that lies between the true classes. *Participation*: (sum v)^2 / sum v^2 of the
eigenvalues v of the covariance, a linear dimension. *Nearest*: the dimension estimated from the
distances to the two nearest rows (Facco et al., 2017), a local one. *Error*: the critic's mean
squared error in alpha at the end of the pre-training; one that can tell nothing has {GUESS:.3f}.
Of more than 5,000 rows so many are drawn.
"""

PUBLISHED = """\
## ACAI as published, on a shorter schedule

The published convolutional pair, codes of 32, batches of 64, lambda 0.5, k-means on whitened
codes; but 5,000 updates in place of 262,144, and Adam at 1e-3 for 1e-4. Without critic is lambda
= 0: a critic learns beside the autoencoder, which does not heed it. With all updates, on
MNIST: k-means 94.4 with the critic and 77.6 without, codes of 32 (Berthelot et al., quoted; not
checked against their table).
"""

DIVERGENCE = """\
## From ABC's distance to DCAN's discriminator

One autoencoder of hidden layers of 256 and 256, and four losses that draw codes to their
clusters: none (k-means), the squared distance (ABC), the Kullback-Leibler divergence of
Gaussians (ABC, KL form), the Jensen-Shannon divergence as a discriminator sees it (DCAN). All
have the reconstruction beside them, but for `dcan-paper`, 500 updates of SGD with the encoder's
loss alone. As in the paper, clusters are fitted on one part of the rows and predicted for the
other, each part scored by a map of its own: MNIST at 14 x 14 pixels, the last 10,000 rows held
out, and R8, its test documents held out. *JSD* is the discriminator's last estimate, at most
0.69; *spread* the variance of the embeddings as a share of that at the start; *highest ACC*
is that of the best moment of a run, which only labels can tell, so that no method ends there.
The paper has k-means 60.2 and DCAN 78.7 on Reuters-10k, which is not R8; its figure for MNIST is
missing from our copy. Optdigits has ten seeds, for what chance does and for how stable these
runs are: a loss that is not a finite number would end a fit with an error, and none did.
"""

ON_THE_WAY = """\
**What happens on the way.** `dcan` on MNIST gains for some 14 passes and then loses more than it
had gained, while the discriminator stays in the middle of its scale: it does not diverge, and
JSD tells nothing of it. What does is the spread, and this explains it: rows are shared out by
the nearest mean, but positives are drawn from a Gaussian fitted to what lies on one side of a
border, and such draws fall on the other side, too. An encoder that puts rows there is hard to
tell from them, the next Gaussian is wider, and embeddings spread, at last over the borders that
the autoencoder had found. With `clusters="mixture"` draws are from the density that was fitted,
whose shares overlap; there the embeddings draw together, and accuracy stays where it came to.
ABC's distance can only draw rows to their mean. Where the spread rises far above 1, which a
warning tells, stop earlier, or take the mixture.
"""


def difference(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", MINUS)  # no minus before a nought


def paired(without: Runs, with_it: Runs) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Runs of the same seeds."""
    others = {run["seed"]: run for run in with_it}
    return [(run, others[run["seed"]]) for run in without if run["seed"] in others]


def cells(settings: dict[str, Runs]) -> Iterator[tuple[str, str, list[Any]]]:
    """(autoencoder, method, pairs) of what has run both ways."""
    for kind in AUTOENCODERS:
        for method in CLUSTERINGS[kind]:
            name = f"adv-{method}-{kind}"
            if pairs := paired(settings.get(name, []), settings.get(f"{name}-critic", [])):
                yield kind, method, pairs


def gains(pairs: list[Any], score: str = "acc") -> list[float]:
    return [100 * (with_it[score] - without[score]) for without, with_it in pairs]


def verdict(results: Results) -> Iterator[str]:
    """What the differences come to: over all cells, and for each method, autoencoder and data."""
    found = [
        (data, f"{NAMES[kind]} autoencoder", NAMES[method], gains(pairs))
        for data, settings in results.items()
        for kind, method, pairs in cells(settings)
    ]
    if not found:
        return
    up, down, mean, (least, most) = summary([values for *_, values in found])
    seeds = sorted({len(values) for *_, values in found})
    worst, best = (
        max(found, key=lambda cell: sign * statistics.fmean(cell[3])) for sign in (-1, 1)
    )
    yield (
        f"**What the tables say.** Of {len(found)} cells (data, autoencoder, method), of"
        f" {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])} each, the critic raised the"
        f" accuracy with every seed in {up}, lowered it with every seed in {down}, and did neither"
        f" in {len(found) - up - down}. The mean difference over cells is {difference(mean)}"
        f" points: from {difference(least)} ({', '.join(worst[:3])}) to {difference(most)}"
        f" ({', '.join(best[:3])}).\n"
    )
    yield "| of | cells | mean difference in ACC | from, to | up, down with every seed |"
    yield "|---|---|---|---|---|"
    for place in (2, 1, 0):
        for which in dict.fromkeys(cell[place] for cell in found):
            own = [cell[3] for cell in found if cell[place] == which]
            up, down, mean, ends = summary(own)
            spanned = ", ".join(map(difference, ends))
            yield f"| {which} | {len(own)} | {difference(mean)} | {spanned} | {up}, {down} |"
    yield ""


def summary(gained: list[list[float]]) -> tuple[int, int, float, tuple[float, float]]:
    """Of cells: how many rose, and fell, with every seed; the mean and the ends of their means."""
    means = [statistics.fmean(values) for values in gained]
    up = sum(min(values) > 0 for values in gained)
    down = sum(max(values) < 0 for values in gained)
    return up, down, statistics.fmean(means), (min(means), max(means))


def critic_section(results: Results) -> Iterator[str]:
    yield CRITIC
    yield from verdict(results)
    for data, settings in results.items():
        found = list(cells(settings))
        if not found:
            continue
        yield f"### {data}\n"
        yield (
            "| autoencoder | method | seeds | ACC without | ACC with | difference | by seed |"
            " NMI without | NMI with | difference |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for kind, method, pairs in found:
            sides = list(zip(*pairs, strict=True))
            row = [NAMES[kind], NAMES[method], str(len(pairs))]
            for score in ("acc", "nmi"):
                row += [spread([100 * run[score] for run in side]) for side in sides]
                values = gains(pairs, score)
                row.append(difference(statistics.fmean(values)))
                if len(values) > 1:
                    row[-1] += f" ± {statistics.stdev(values):.1f}"
                if score == "acc":
                    row.append(", ".join(map(difference, values)))
            yield f"| {' | '.join(row)} |"
        yield ""


def latent_section(results: Results) -> Iterator[str]:
    columns = {
        "silhouette": "the silhouette",
        "separation": "the share between classes",
        "participation": "the participation",
        "nearest": "the dimension by neighbours",
    }
    every = [pairs for settings in results.values() for *_, pairs in cells(settings)]
    if not every:
        return
    yield LATENT
    counts = []
    for name, title in columns.items():
        sides = (latent(pairs, name) for pairs in every)
        signs = [
            after > before for before, after in sides if before is not None and after is not None
        ]
        counts.append(f"{title} in {sum(signs)} of {len(signs)}")
    yield f"The critic raised {', '.join(counts)} cells, by their means over seeds.\n"
    for data, settings in results.items():
        found = list(cells(settings))
        if not found:
            continue
        yield f"**{data}**\n"
        yield (
            "| autoencoder | method | silhouette | between classes | participation | nearest |"
            " error |"
        )
        yield "|---|---|---|---|---|---|---|"
        for kind, method, pairs in found:
            row = [NAMES[kind], NAMES[method]]
            for name in columns:
                digits = 2 if name in ("silhouette", "separation") else 1
                means = latent(pairs, name)
                row.append(" → ".join("none" if m is None else f"{m:.{digits}f}" for m in means))
            row.append(f"{statistics.fmean(critics_error(run) for _, run in pairs):.3f}")
            yield f"| {' | '.join(row)} |"
        yield ""


def latent(pairs: list[Any], name: str) -> list[float | None]:
    """The mean of a number of the embedding without and with the critic, where there is one."""
    sides = (
        [run["embedding"][name] for run in side if name in run["embedding"]]
        for side in zip(*pairs, strict=True)
    )
    return [statistics.fmean(side) if side else None for side in sides]


def critics_error(run: dict[str, Any]) -> float:
    """The last of the critic's errors in the pre-training."""
    error: float = run["pretraining"]["history"]["tune/critic"][-1][1]
    return error


def rows_of(data: str, settings: dict[str, Runs], names: Sequence[str], more: Any) -> Iterator[str]:
    """A row a setting: seeds, ACC, NMI, what `more` makes of its runs, and seconds."""
    for name in names:
        if runs := settings.get(name):
            scores = (spread([100 * run[score] for run in runs]) for score in ("acc", "nmi"))
            row = [f"`{name}`", str(len(runs)), *scores, *more(runs), seconds(runs)]
            yield f"| {' | '.join(row)} |"


def acai_section(results: Results) -> Iterator[str]:
    def more(runs: Runs) -> list[str]:
        return [f"{statistics.fmean(map(critics_error, runs)):.3f}"]

    for data, settings in results.items():
        rows = list(rows_of(data, settings, list(ACAIS), more))
        if not rows:
            continue
        plain = list(rows_of(data, settings, ["k-means"], lambda runs: [""]))
        yield f"### {data}\n"
        yield "| setting | seeds | ACC % | NMI % | critic's error | seconds |"
        yield "|---|---|---|---|---|---|"
        yield from [*rows, *plain]
        for end in ("", "-not-whitened"):
            names = (f"acai-without-critic{end}", f"acai{end}")
            if pairs := paired(*(settings.get(name, []) for name in names)):
                by_seed = ", ".join(map(difference, gains(pairs)))
                yield f"\nDifference by seed, `{names[1]}` {MINUS} `{names[0]}`: {by_seed}."
        yield ""


def divergence_section(results: Results) -> Iterator[str]:
    def more(runs: Runs) -> list[str]:
        held = [
            spread([100 * run["held_out"][score] for run in runs]) if "held_out" in runs[0] else ""
            for score in ("acc", "nmi")
        ]
        series = (
            [run["history"][f"cluster/{name}"][-1][1] for run in runs]
            if f"cluster/{name}" in runs[0].get("history", {})
            else []
            for name in ("jsd", "spread")
        )
        best = [
            100 * max(acc for _, acc in run["history"]["cluster/acc"])
            for run in runs
            if "cluster/acc" in run.get("history", {})
        ]
        return [
            *held,
            spread(best) if best else "",
            *(f"{statistics.fmean(ends):.2f}" if ends else "" for ends in series),
        ]

    for data, settings in results.items():
        rows = list(rows_of(data, settings, ["k-means", *CHAIN], more))
        if not any(name in settings for name in CHAIN):
            continue
        yield f"### {data}\n"
        yield (
            "| setting | seeds | ACC % | NMI % | held-out ACC | held-out NMI | highest ACC | JSD |"
            " spread | seconds |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        yield from rows
        for other in ("k-means", "dcan-ae-k-means", "dcan-abc"):
            if pairs := paired(settings.get(other, []), settings.get("dcan", [])):
                by_seed = ", ".join(map(difference, gains(pairs)))
                yield f"\nDifference in ACC by seed, `dcan` {MINUS} `{other}`: {by_seed}."
        yield ""


def pictures(folder: Path, pattern: str, text: str) -> Iterator[str]:
    """The pictures that there are of this kind, under their text."""
    files = sorted(folder.glob(pattern))
    if files:
        yield text
    for file in files:
        kind, *which, data = file.stem.split("-")
        settings = [f"`{name}`" for network in which for name in STRIPS[network]]
        yield f"{data}{': ' * bool(settings)}{' and '.join(settings)}\n"
        yield f"![{kind}, {data}](figures/{file.name})\n"


def page(results: Results, figures: Path) -> str:
    lines = [HEAD, *critic_section(results), *latent_section(results)]
    lines += pictures(
        figures,
        "critic-*.png",
        "The critic's error in alpha while the autoencoder is trained; dotted, that of a critic"
        " that can tell nothing. Below it the critic is winning:\n",
    )
    lines += pictures(
        figures,
        "strips-*.png",
        "Decoded between the codes of pairs of rows, drawn by chance, from the one to the other:\n",
    )
    if acai := list(acai_section(results)):
        lines += [PUBLISHED, *acai]
    if chain := list(divergence_section(results)):
        lines += [DIVERGENCE, *chain, ON_THE_WAY]
        lines += pictures(figures, "chain-*.png", "By update, a line a seed:\n")
    lines.append("## Commands\n")
    for data, settings in results.items():
        if own := {name: runs for name, runs in settings.items() if name in GRID | ACAIS | CHAIN}:
            lines += [f"**{data}**\n", *commands(data, own)]
    return "\n".join(lines).rstrip() + "\n"


@_styled
def errors(series: dict[str, list[list[float]]]) -> Figure:
    """The critic's error by update, a curve each."""
    figure = _new_figure(0.7 * FULL, 3.2)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    for (name, points), colour in zip(series.items(), cluster_colors(len(series)), strict=True):
        axes.plot(*zip(*points, strict=True), color=colour, label=name)
    axes.axhline(GUESS, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("updates")
    axes.set_ylabel("the critic's error in alpha")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# What is drawn of a run that draws codes to their clusters.
WATCHED = {"acc": "ACC", "spread": "spread of embeddings", "jsd": "JSD"}


@_styled
def chains(settings: dict[str, Runs]) -> Figure:
    """Accuracy, spread and divergence by update, a colour a setting and a line a seed."""
    figure = _new_figure(FULL, 2.6)
    panels = figure.subplots(1, len(WATCHED))
    for axes, (name, title) in zip(panels, WATCHED.items(), strict=True):
        for (setting, runs), colour in zip(
            settings.items(), cluster_colors(len(settings)), strict=True
        ):
            label: str | None = setting
            for run in runs:
                if points := run["history"].get(f"cluster/{name}"):
                    axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1)
                    label = None
        axes.grid(axis="y")
        axes.set_title(title)
        axes.set_xlabel("updates")
    panels[0].legend(loc="lower left")
    return figure


@_styled
def strips(panels: dict[str, Any], shape: Sequence[int]) -> Figure:
    """A panel each of strips (n, STEPS, H * W): images side by side, strips one below the other."""
    height, width = shape[:2]
    n = len(next(iter(panels.values())))
    side = FULL / 2 / STEPS
    figure = _new_figure(FULL, 0.4 + n * side * height / width)
    low, high = np.percentile(list(panels.values()), (1, 99))  # a few pixels lie far out
    for axes, (title, images) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        gap = max(1, height // 14)
        framed = np.pad(
            images.reshape(n, STEPS, height, width),
            ((0, 0), (0, 0), (0, gap), (0, gap)),
            constant_values=np.nan,
        )
        mosaic = framed.transpose(0, 2, 1, 3).reshape(n * (height + gap), -1)
        axes.imshow(mosaic, cmap="gray", vmin=low, vmax=high)
        axes.set_title(title)
        axes.set_axis_off()
    return figure


def decoded(method: Any, rows: Any) -> Any:
    """What lies between the codes of rows 0 and 1, 2 and 3, ...: (n / 2, STEPS, D)."""
    with torch.inference_mode():
        x = method.preprocess(torch.from_numpy(np.asarray(rows, np.float32)))
        first, second = method.network.encode(x).unflatten(0, (-1, 1, 2)).unbind(2)
        mixed = torch.lerp(first, second, torch.linspace(0, 1, STEPS).unsqueeze(1))
        return method.network.decode(mixed.flatten(0, 1)).unflatten(0, mixed.shape[:2]).numpy()


def draw(results: Results, args: argparse.Namespace) -> Iterator[tuple[str, Figure]]:
    """The pictures by name: of each data set and seed that there is, the first seed."""
    for data, settings in results.items():
        series = {}
        names = {f"adv-k-means-{kind}-critic": NAMES[kind] for kind in AUTOENCODERS}
        for name, title in {**names, **{name: name for name in ACAIS}}.items():
            if runs := settings.get(name):
                series[title] = runs[0]["pretraining"]["history"]["tune/critic"]
        if series:
            yield f"critic-{data}", errors(series)
        watched = ("dcan-abc", "dcan-mixture", "dcan")
        if chain := {name: settings[name] for name in watched if name in settings}:
            yield f"chain-{data}", chains(chain)
        for picture, pair in STRIPS.items():
            if not all(name in settings for name in pair):
                continue
            loaded = load(args.data_dir, DATA[data])
            rng = np.random.default_rng(0)
            rows = loaded.X[rng.choice(len(loaded), 2 * PAIRS, replace=False)]
            panels = {}
            for title, name in zip(("without critic", "with critic"), pair, strict=True):
                job = plan(data, name, 0, DATA[data], SETTINGS[name], loaded)
                file = job.network(args.cache)
                if not file.exists():
                    sys.exit(f"{file} is not there: run {name} on {data}, seed 0, on this machine")
                weights = _files.load_tree(file, kind="pretrained network")["network"]
                model = job.make(pretrained=weights, n_init=1).fit(loaded.X)
                panels[title] = decoded(model._method, rows)
            yield f"strips-{picture}-{data}", strips(panels, loaded.image_shape)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--pictures", action="store_true", help="draw them too")
    parser.add_argument("--data-dir", type=Path, help="the folder of data sets, for pictures")
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "adversarial.md")
    args = parser.parse_args(argv)
    results, figures = read(args.results), args.page.parent / "figures"
    if args.pictures:
        if args.data_dir is None:
            parser.error("--pictures takes --data-dir")
        figures.mkdir(parents=True, exist_ok=True)
        for name, figure in draw(results, args):
            with _files.atomic_path(figures / f"{name}.png") as path:
                figure.savefig(path, format="png", dpi=110)
            print(figures / f"{name}.png")
    return settle(args, page(results, figures), "experiments.adversarial")


if __name__ == "__main__":
    sys.exit(main())
