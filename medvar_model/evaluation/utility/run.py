"""Measure what samples are good for: train a small classifier on real slices, on samples and on both, test it on unseen patients.

In: a `Utility`. Out: a folder with

    utility.json       everything: scores with intervals, differences, floors, notes, digests of what it came from
    utility.parquet    a row an arm, share and metric, of differences, too
    named.parquet      a row an arm, share, seed and held-out slice: what it was taken for
    utility.png        balanced accuracy over the share of real patients
    pictures/shown.png what the classifier was trained on
    index.html         the same for people

Trained on samples alone, this is the classification accuracy score (Ravuri and Vinyals 2019, arXiv 1905.10887).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvar_model.evaluation.metrics.classify import condition_features, fit_classifier
from medvar_model.evaluation.metrics.nearest import nearest, thumbnails
from medvar_model.evaluation.outputs import finished_report
from medvar_model.evaluation.scores import Labelled, score_copies
from medvar_model.evaluation.utility.arms import REAL, Arm, Slices, Task, arms, check_apart, parts_of, task_of
from medvar_model.evaluation.utility.classifier import ConditionNetwork, Part, log_chances, train_network
from medvar_model.evaluation.utility.notes import notes
from medvar_model.evaluation.utility.outputs import RESULT, Trained, write_results
from medvar_model.evaluation.utility.scores import Draws, Values, scored, summary
from medvar_model.evaluation.utility.sets import Sets
from medvar_model.evaluation.utility.settings import Utility
from medvar_model.machine.memory import told_when_memory_ends
from medvar_model.mosaic import spread_out

FITTED = 512  # training images of each source that a trained network is asked for


def measure_utility(
    spec: Utility, device: torch.device, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Train every arm with every seed, score all on the same held-out patients, write everything.

    The same call again returns the result that it left before.

    Args:
        spec: what to measure.
        device: what to compute on; on one CPU the same call gives the same numbers.
        report: told in a line of each stage that begins.

    Returns:
        The content of utility.json.

    Raises:
        MissingCheckpoint: the run is not there, or the folder holds no images.
        UnknownCondition: an image is of a condition that the set does not have.
        ShardSetMismatch: the set has no held-out slices, fewer than two conditions in common with the images, patients in two splits,
            or other conditions than the run.
        ConfigMismatch: an image is not square.
        OutOfMemory: so many images at a time do not fit.

    Example:
        >>> measure_utility(Utility("utility", DataSpec("S"), "runs/d4"), torch.device("cpu"))  # doctest: +SKIP
    """
    with told_when_memory_ends(f"Training on {spec.batch_size} images at a time", "Give a smaller --batch-size."):
        sets = Sets(spec, device, report)
        return finished_report(Path(spec.out) / RESULT, sets.inputs()) or _measured(spec, sets, device, report)


def check_utility(spec: Utility, device: torch.device) -> None:
    """Check what `measure_utility` checks before it reads slices; write nothing.

    Raises:
        ModelError, MedvarError: what stands in its way.
    """
    Sets(spec, device, lambda line: None)


def _measured(spec: Utility, sets: Sets, device: torch.device, report: Callable[[str], None]) -> dict[str, Any]:
    out, facts = Path(spec.out), sets.facts
    held, held_keys = sets.held_out()
    real, real_keys = sets.training()
    check_apart([facts.patient[key] for key in real_keys], [facts.patient[key] for key in held_keys])
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)  # a result of other inputs must not stand beside new tables
    synthetic = sets.synthetic()
    of = facts.cell if spec.task == "anatomy" else {name: name for name in facts.cell}
    found = {"training patients": real, "held-out patients": held, "synthetic images": synthetic}
    task = task_of(of, {name: part.conditions for name, part in found.items()})
    training, test = task.slices(real, real_keys, facts.patient), task.slices(held, held_keys, facts.patient)
    drawn = task.slices(synthetic, [str(i) for i in range(len(synthetic))])
    trained = [
        _trained(spec, arm, (training, drawn, test), len(task.classes), (device, report)) for arm in arms(spec.shares)
    ]
    draws = Draws.of(test.part.target, test.patients, spec.seeds, spec.replicates)
    values = {one.arm: scored(one.chances, draws, task.classes) for one in trained}
    result: dict[str, Any] = {
        "inputs": sets.inputs(),
        "settings": asdict(spec.settings) if spec.run else None,
        "task": {"names": spec.task, "classes": list(task.classes), "left_out": dict(task.left_out)},
        "network": _network(spec, len(task.classes), sets.reference.train.image_side),
        "held_out": {"slices": len(test), "patients": len(set(test.patients))},
        "counts": _counts(training, drawn, test, task),
        "arms": [
            {**asdict(one.arm), "patients": list(one.patients), "images": list(one.images), "fit": list(one.fit)}
            | {"scores": {name: summary(value, draws) for name, value in values[one.arm].items()}}
            for one in trained
        ],
        "differences": _differences(values, draws),
        "floors": _floors(training, test, draws, task),
        "copies": _copies(synthetic, held, real),
    }  # fmt: skip
    result["notes"] = notes(result)
    return write_results(out, result, trained, (training, drawn, test))


def _trained(
    spec: Utility, arm: Arm, sets: tuple[Slices, Slices, Slices], n_classes: int,
    on: tuple[torch.device, Callable[[str], None]],
) -> Trained:  # fmt: skip
    """Train an arm with every seed, and ask each network for the held-out slices."""
    real, synthetic, test = sets
    device, report = on
    chances, patients, images, fit = [], [], [], []
    for seed in range(spec.seeds):
        report(f"training on {arm.said}, {seed + 1} of {spec.seeds}")
        parts, people = parts_of(arm, real, synthetic, seed)
        network = train_network(parts, n_classes, spec.steps, spec.batch_size, seed, device)
        chances.append(log_chances(network, test.part.images, device))
        patients.append(people)
        images.append(sum(map(len, parts)))
        fit.append(float(np.mean([_right(network, part, device) for part in parts])))
    return Trained(arm, tuple(chances), tuple(patients), tuple(images), tuple(fit))


def _right(network: ConditionNetwork, part: Part, device: torch.device) -> float:
    """Give the share of a source's own images, at most so many, that the network names right after its training."""
    some = spread_out(len(part), FITTED)
    return float((log_chances(network, part.images[some], device).argmax(1) == part.target[some]).mean())


def _network(spec: Utility, n_classes: int, side: int) -> dict[str, int]:
    network = ConditionNetwork(n_classes, torch.Generator())
    parameters = sum(weights.numel() for weights in network.parameters())
    return {"side": side, "parameters": parameters, "images_seen": spec.steps * spec.batch_size}


def _counts(real: Slices, synthetic: Slices, test: Slices, task: Task) -> dict[str, dict[str, int]]:
    """Count images, and patients where there are some, of each class in each set."""
    counts: dict[str, dict[str, int]] = {}
    for number, name in enumerate(task.classes):
        mine = counts[name] = {"synthetic": int((synthetic.part.target == number).sum())}
        for kind, part in (("training", real), ("held_out", test)):
            places = np.flatnonzero(part.part.target == number)
            mine |= {kind: len(places), f"{kind}_patients": len({part.patients[i] for i in places})}
    return counts


def _differences(values: Mapping[Arm, Mapping[str, Values]], draws: Draws) -> list[dict[str, Any]]:
    """Compare synthetic and both with real at each share, paired by patient and seed."""
    return [
        {"arm": arm.name, "share": base.share, "metric": metric, **summary(values[arm][metric] - values[base][metric], draws)}
        for base in values if base.name == REAL
        for arm in values if arm.name != REAL and arm.share in (0.0, base.share)
        for metric in values[arm]
    ]  # fmt: skip


def _floors(real: Slices, test: Slices, draws: Draws, task: Task) -> dict[str, Any]:
    """Say what costs nothing: a guess, the most frequent class, and a linear classifier on 16 x 16 pixels of all real slices."""
    n = len(task.classes)
    most = int(np.bincount(real.part.target, minlength=n).argmax())
    linear = fit_classifier(condition_features(real.part.images), [task.classes[i] for i in real.part.target])
    chances = linear.chances(condition_features(test.part.images))
    return {
        "chance": {"balanced_accuracy": 1 / n, "auroc": 0.5},
        "majority": {"class": task.classes[most], "accuracy": float((test.part.target == most).mean())},
        "thumbnails": {name: summary(value, draws) for name, value in scored([chances], draws, task.classes).items()},
    }


def _copies(synthetic: Labelled, held: Labelled, real: Labelled) -> dict[str, Any]:
    """Take a quick look for copies of the real slices that the arms are trained on."""
    training = thumbnails(real.images)
    near = [nearest(thumbnails(part.images), training).distance for part in (synthetic, held)]
    return score_copies(near[0], synthetic, near[1], held)
