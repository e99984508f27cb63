"""The tables of configurations and the command lines of a model's page."""

from __future__ import annotations

from collections.abc import Sequence

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.reporting.published.load import PublishedRun
from pages.published import Figures, named_runs, plain, table


def configurations(model: str) -> str:
    """Return the main settings of every configuration with a publication."""
    platforms = list(dict.fromkeys(run.named.platform for run in named_runs(model) if run.named))
    order = list(load_catalogue().platforms)
    rows = []
    for (name, platform, precision), entry in load_catalogue().entries.items():
        if name != model or platform not in platforms:
            continue
        of = {
            recipe: resolve(model, precision, "convergence", platform, recipe)
            for recipe in entry.recipes
        }
        # A recipe with another batch (FP32, 50 epochs, DGX-1) has its own row.
        rows += [
            (order.index(platform), _setting_cells(of[recipes[0]], recipes))
            for recipes in _alike(of)
        ]
    heads = ["platform", "precision", "layout", "devices x batch x accumulation", "global batch"]
    heads += ["peak lr", "weight decay", "warm-up, epochs", "recipes"]
    return table(heads, [cells for _, cells in sorted(rows, key=lambda row: row[0])])


def _alike(of: dict[str, RunConfig]) -> list[list[str]]:
    groups: dict[tuple[float, ...], list[str]] = {}
    for recipe, config in of.items():
        key = (config.batch.per_device_batch, config.batch.global_batch, config.optim.lr)
        groups.setdefault(key, []).append(recipe)
    return list(groups.values())


def _setting_cells(config: RunConfig, recipes: list[str]) -> list[str]:
    batch, decay = config.batch, config.optim.weight_decay
    inverse = 1 / decay
    power = inverse == int(inverse) and int(inverse) & (int(inverse) - 1) == 0
    return [
        config.names.platform,
        config.names.precision,
        config.model.memory_format.upper(),
        f"{config.world_size} x {batch.per_device_batch} x {batch.accumulation}",
        plain(batch.global_batch),
        f"{_peak_lr(config):g}",
        f"1/{int(inverse)}" if power else f"{decay:g}",
        f"{config.schedule.warmup_epochs:g}",
        ", ".join(recipes),
    ]


def _peak_lr(config: RunConfig) -> float:
    """Return the maximum learning rate; a list schedule may reach it after its start."""
    return max(config.optim.lr, *config.schedule.milestone_lrs, 0.0)


def commands(model: str) -> str:
    """Return one command line for every published run with a name."""
    catalogue = load_catalogue()
    training_runs: dict[tuple[str, str, str], list[PublishedRun]] = {}
    timed: dict[tuple[str, str], list[PublishedRun]] = {}
    for run in named_runs(model):
        assert run.named is not None
        platform, precision = run.named.platform, run.named.precision
        if run.kind == "inference":
            timed.setdefault((platform, precision), []).append(run)
            continue
        default = catalogue.find(model, platform, precision).default_recipe
        key = (platform, precision, run.named.recipe or default)
        training_runs.setdefault(key, []).append(run)
    lines = []
    order = list(catalogue.platforms)
    for key in sorted(training_runs, key=lambda key: (order.index(key[0]), key[1], key[2])):
        platform, precision, recipe = key
        lines.append(_comment(training_runs[key]))
        only_speed = all(run.kind == "throughput" for run in training_runs[key])
        mode = "benchmark_training" if only_speed else "convergence"
        lines.append(_command(model, precision, mode, platform, f"--recipe {recipe} /imagenet"))
    for (platform, precision), runs in timed.items():
        lines.append(f"# {runs[0].id}")
        rest = "--set platform.num_devices=1"
        lines.append(_command(model, precision, "benchmark_inference", platform, rest))
    return "```sh\n" + "\n".join(lines) + "\n```"


def _comment(runs: Sequence[PublishedRun]) -> str:
    """Return a comment with the newest publication, its accuracy, and the number of others."""
    best = next((run for run in runs if Figures(run).row("top1")), runs[0])
    top1 = Figures(best).value("top1")
    more = f", and {len(runs) - 1} more" if len(runs) > 1 else ""
    return f"# {best.id}{more}" + (f": top-1 {top1} %" if top1 else "")


def _command(model: str, precision: str, mode: str, platform: str, rest: str) -> str:
    names = f"--model {model} --precision {precision} --mode {mode} --platform {platform}"
    return f"python launch.py {names} {rest}"


def differences(model: str) -> str:
    """Return the settings that differ between a publication and its configuration, and why."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in named_runs(model):
        if run.differs:
            groups.setdefault(tuple(run.differs.items()), []).append(run.id)
    rows = [
        ["<br>".join(ids), "<br>".join(f"{setting}: {why}" for setting, why in settings)]
        for settings, ids in groups.items()
    ]
    return table(["publications", "what differs here"], rows)
