"""Ask the transformer itself whether it knows a slice: does it find training slices likelier than unseen patients' slices?

In: a run, training and held-out slices. Out: two tests of membership and the gap in likelihood.

    likelihood     log p(tokens | condition), nats a token
    difference     log p(tokens | condition) - log p(tokens), nats a token: the test that finds most members in models of VAR's kind
                   (Kowalczuk et al. 2025, arXiv 2502.02514), since what is common to all slices of a kind cancels

Each is given as the area under the ROC curve (0.5: members cannot be told) and the share of members found where 1 % of
non-members are called members. The gap is the mean of training slices minus that of held-out ones, with its interval over patients.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64

from medvar_model.evaluation.metrics.intervals import interval
from medvar_model.loader import Examples
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer

FALSE_ALARMS = 0.01


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """Log-likelihoods of slices, nats a token: with their condition, and without one."""

    keys: tuple[str, ...]
    conditional: Float64[np.ndarray, " n"]
    unconditional: Float64[np.ndarray, " n"]


@torch.no_grad()
def likelihoods(tokenizer: Tokenizer, transformer: Transformer, batches: Iterator[Examples]) -> Likelihoods:
    """Compute both log-likelihoods of every slice, by teacher forcing."""
    keys: list[str] = []
    rows: list[np.ndarray] = []
    for part in batches:
        tokens = tokenizer.encode(part.images)
        inputs, target = torch.cat(tokenizer.pyramid.inputs(tokens), 1), torch.cat(list(tokens), 1)
        nothing = torch.full_like(part.conditions, transformer.config.n_conditions)
        both = []
        for conditions in (part.conditions, nothing):
            logits = transformer(conditions, inputs).float().transpose(1, 2)
            both.append(-F.cross_entropy(logits, target, reduction="none").double().mean(1))
        rows.append(torch.stack(both).cpu().numpy())
        keys += part.keys
    conditional, unconditional = np.concatenate(rows, 1)
    return Likelihoods(tuple(keys), conditional, unconditional)


def membership(train: Likelihoods, held: Likelihoods, patients: dict[str, str]) -> dict[str, Any]:
    """Compare training and held-out slices; JSON-ready.

    Args:
        train: of slices the transformer was trained on.
        held: of slices it was not.
        patients: key → patient.
    """
    groups = [[patients[key] for key in part.keys] for part in (train, held)]
    said: dict[str, Any] = {"n_train": len(train.keys), "n_held_out": len(held.keys)}
    for name in ("likelihood", "difference"):
        ours, theirs = (
            part.conditional - (part.unconditional if name == "difference" else 0) for part in (train, held)
        )
        gap = float(ours.mean() - theirs.mean())
        ends = interval(
            lambda a, b: float(a.mean() - b.mean()), (ours[:, None], groups[0]), (theirs[:, None], groups[1])
        )
        said[name] = {
            "gap": gap,
            "interval": ends,
            "auc": area(ours, theirs),
            "found_at_1_percent": found(ours, theirs),
        }
    return said


def area(members: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"]) -> float:
    """Give the share of pairs in which the member scores higher (ties count half): the area under the ROC curve."""
    ordered = np.sort(others)
    below, upto = np.searchsorted(ordered, members, "left"), np.searchsorted(ordered, members, "right")
    return float((below + upto).mean() / 2 / len(others))


def found(members: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"], alarms: float = FALSE_ALARMS) -> float:
    """Give the share of members above the score that a share `alarms` of others lies above."""
    return float((members > np.quantile(others, 1 - alarms, method="higher")).mean())
