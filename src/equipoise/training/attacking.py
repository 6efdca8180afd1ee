"""Attacks on a stored network or any torch module, and the card that says what came of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.attacks.auto import auto_attack, auto_attack_source
from equipoise.attacks.evaluation import Plan, Robustness, Sample, evaluate_robustness
from equipoise.attacks.pgd import PGD
from equipoise.attacks.pixels import Pixels
from equipoise.attacks.settings import Attacking, check_attacking
from equipoise.attacks.threat import ThreatModel
from equipoise.attacks.validity import Flag, validity_flags
from equipoise.records import write_atomically
from equipoise.settings import DataSettings, LoopSettings, Run, as_plain
from equipoise.training import build
from equipoise.training.manifest import versions
from equipoise.training.objective import pixels_of
from equipoise.training.stored import load_stored

FORMAT = 1
_CHECKED = 128


@dataclass(frozen=True, kw_only=True)
class Victim:
    """What is attacked.

    Args:
        model: Takes inputs, returns logits.
        test: Images that it is attacked on.
        run: Settings for data and device.
        device: Where the model is.
        description: For the card.
        folder: Where the card goes unless told otherwise.
    """

    model: nn.Module
    test: build.Images
    run: Run
    device: torch.device
    description: dict[str, Any]
    folder: Path


def attack_network(
    chosen: Attacking, *, command: str = "", on_progress: Callable[[int, float], None] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Attacks a network on test images and writes a card, as JSON and as text beside it.

    Args:
        chosen: What is attacked, and how.
        command: How it was called, for the card.
        on_progress: Told of the images so far and their robust accuracy.

    Returns:
        The file of the card, and its content.

    Raises:
        ValueError: A setting is wrong, or the card is there already.
        FileNotFoundError: There is no network, or the data are missing.
        ImportError: AutoAttack or the module cannot be imported.
    """
    check_attacking(chosen)
    if chosen.method == "autoattack":
        auto_attack_source()  # said before anything is read
    with ExitStack() as stack:
        victim = _victim(chosen, stack)
        path = chosen.out or victim.folder / f"{chosen.name}.json"
        if path.exists() and not chosen.overwrite:
            raise ValueError(
                f"{path} is there already; pass --overwrite to replace it, or choose another --out."
            )
        pixels = pixels_of(victim.test)
        plan = plan_of(chosen)
        found = _attacked(chosen, victim, plan, pixels, on_progress)
        flags = _flags(victim, plan, pixels)
    card = _card(chosen, victim, found, flags, command)
    write_atomically(path, json.dumps(card, indent=2) + "\n")
    write_atomically(path.with_suffix(".txt"), as_text(card))
    return path, card


def plan_of(chosen: Attacking) -> Plan:
    """The plan behind the settings."""
    attack = PGD(
        threat=ThreatModel(norm=chosen.norm, eps=chosen.eps),
        step_size=chosen.length_of_step,
        steps=chosen.steps,
    )
    return Plan(
        attack=attack,
        restarts=chosen.restarts,
        loss=chosen.loss,
        targets=chosen.targets,
        seed=chosen.seed,
    )


def as_text(card: dict[str, Any]) -> str:
    """The card for people.

    Args:
        card: From `attack_network`.
    """
    low, high = (100 * bound for bound in card["robust_interval"])
    attack, cost = card["attack"], card["cost"]
    if attack["method"] == "autoattack":
        how = f"AutoAttack ({attack['package']})"
    else:
        how = (
            f"PGD, {attack['steps']} steps of {attack['step_size']:.4g}, "
            f"{attack['restarts']} random restarts, {attack['loss'].replace('_', '-')}"
        )
        how += f", towards {attack['targets']} wrong classes" if attack["targets"] else ""
    lines = [
        f"Network          {card['model']['source']} ({card['model']['label']})",
        f"Images           {card['data']['dataset']}, {card['data']['samples']} test images",
        f"Threat model     {card['threat']['label']}",
        f"Attack           {how}",
        f"BatchNorm        {card['batchnorm']} statistics",
        f"Clean accuracy   {100 * card['clean_accuracy']:.2f} %",
        f"Robust accuracy  {100 * card['robust_accuracy']:.2f} % "
        f"(95 % interval over images {low:.2f} to {high:.2f})",
        f"Cost             {cost['seconds']:.1f} s on {cost['device']}, "
        f"{cost['forward_samples']} images forward, {cost['backward_samples']} backward",
    ]
    raised = [flag for flag in card["flags"] if flag["raised"]]
    lines.append(f"Checks           {len(card['flags'])} made, {len(raised)} raised")
    for flag in raised:
        lines += ["", f"WARNING ({flag['name']}): {flag['found']}.", f"  {flag['explanation']}"]
    return "\n".join([*lines, ""])


def _victim(chosen: Attacking, stack: ExitStack) -> Victim:
    """Reads what is attacked; a change of statistics lasts as long as the stack."""
    if chosen.run is None:
        return _victim_by_path(chosen)
    stored = load_stored(chosen.run, data_dir=chosen.data_dir, device=chosen.device)
    stack.enter_context(build.autocast(stored.run.loop, stored.device))
    stack.enter_context(stored.evaluating(refresh_batchnorm=chosen.refresh_batchnorm))
    refreshed = chosen.refresh_batchnorm or stored.run.loop.batchnorm == "refreshed"
    return Victim(
        model=stored.model,
        test=_first(stored.images.test, chosen),
        run=stored.run,
        device=stored.device,
        description={
            "source": str(chosen.run),
            "label": f"{stored.run.robust.objective}, {stored.label}",
            "run": as_plain(stored.run),
            "batchnorm": "refreshed" if refreshed else "running",
        },
        folder=chosen.run if chosen.run.is_dir() else chosen.run.parent,
    )


def _victim_by_path(chosen: Attacking) -> Victim:
    """A module that is imported, and the test images of a data set."""
    assert chosen.module is not None
    device = build.resolve_device(chosen.device)
    data = DataSettings(dataset=chosen.dataset, data_dir=chosen.data_dir, inputs=chosen.inputs)
    run = Run(data=data, loop=LoopSettings(device=chosen.device))
    model = import_module_at(chosen.module)
    if chosen.weights is not None:
        _load_state(model, chosen.weights)
    images = build.select_images(build.load_images(data), data)
    return Victim(
        model=model.to(device),
        test=_first(images.test, chosen),
        run=run,
        device=device,
        description={
            "source": chosen.module,
            "label": "module" if chosen.weights is None else str(chosen.weights),
            "batchnorm": "running",
        },
        folder=Path("runs") / "".join(c if c.isalnum() else "_" for c in chosen.module),
    )


def import_module_at(path: str) -> nn.Module:
    """A torch module by its import path.

    Args:
        path: ``package.module:name``, of a module or of a function without arguments that makes
            one; files in the folder one is in are found too.

    Raises:
        ValueError: The path is not of that form, or there is no torch module behind it.
        ImportError: It cannot be imported.

    Example:
        >>> type(import_module_at("torch.nn:Identity")).__name__
        'Identity'
    """
    where, colon, name = path.partition(":")
    if not (where and colon and name):
        raise ValueError(
            f"--module is package.module:name; got {path!r}; for example models:make_network."
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(where)
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"--module {path} was imported, but it has no {part}; check the name.")
        found = getattr(found, part)
    made = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"--module {path} gives {type(made).__name__}, expected a torch.nn.Module, or a "
            "function without arguments that makes one."
        )
    return made


def _load_state(model: nn.Module, path: Path) -> None:
    """Loads the state of a module; nothing in the file is executed."""
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}; check --weights.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for many kinds of misfit
        reason = str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
        raise ValueError(
            f"{path} does not fit the module ({reason}); pass what torch.save wrote of its "
            "state_dict()."
        ) from error


def _first(images: build.Images, chosen: Attacking) -> build.Images:
    """The test images that are attacked."""
    if chosen.samples is None or chosen.samples >= len(images):
        return images
    return images.subset(chosen.samples)


def _samples(victim: Victim, pixels: Pixels, batch_size: int) -> Iterator[Sample]:
    """Batches of images in [0, 1]."""
    for batch in build.test_loader(victim.test, victim.run, victim.device).epoch(0):
        parts = (pixels.of(batch.x), batch.y, batch.index)
        yield from zip(*(part.split(batch_size) for part in parts), strict=True)


def _attacked(
    chosen: Attacking,
    victim: Victim,
    plan: Plan,
    pixels: Pixels,
    on_progress: Callable[[int, float], None] | None,
) -> Robustness:
    """Runs the attack."""
    samples = _samples(victim, pixels, chosen.batch_size)
    if chosen.method == "pgd":
        return evaluate_robustness(
            victim.model, samples, plan, pixels=pixels, on_progress=on_progress
        )
    return auto_attack(
        victim.model,
        samples,
        plan.attack.threat,
        num_classes=len(victim.test.classes),
        pixels=pixels,
        seed=chosen.seed,
    )


def _flags(victim: Victim, plan: Plan, pixels: Pixels) -> list[Flag]:
    """The checks, on the first images."""
    x, y, _ = next(_samples(victim, pixels, _CHECKED))
    return validity_flags(victim.model, x, y, plan, pixels=pixels)


def _card(
    chosen: Attacking, victim: Victim, found: Robustness, flags: list[Flag], command: str
) -> dict[str, Any]:
    """All that is needed to understand the number, and to make it again."""
    samples, description = len(found.clean), dict(victim.description)
    attack: dict[str, Any] = {"method": chosen.method, "seed": chosen.seed}
    if chosen.method == "autoattack":
        attack["package"] = auto_attack_source()
    else:
        attack |= {
            "steps": chosen.steps,
            "step_size": chosen.length_of_step,
            "restarts": chosen.restarts,
            "loss": chosen.loss,
            "targets": chosen.targets,
        }
    threat = ThreatModel(norm=chosen.norm, eps=chosen.eps)
    return {
        "format": FORMAT,
        "clean_accuracy": found.clean_accuracy,
        "robust_accuracy": found.robust_accuracy,
        "robust_interval": wilson(int(found.robust.sum()), samples),
        "by_restart": list(found.by_restart),
        "threat": {"norm": threat.norm, "eps": threat.eps, "label": threat.label},
        "attack": attack,
        "batchnorm": description.pop("batchnorm"),
        "data": {"dataset": victim.run.data.dataset, "split": "test", "samples": samples},
        "model": description,
        "flags": [asdict(flag) for flag in flags],
        "cost": {
            "seconds": found.seconds,
            "forward_samples": found.forward_samples,
            "backward_samples": found.backward_samples,
            "device": str(victim.device),
        },
        "versions": versions(),
        "command": command,
    }


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score.

    Example:
        >>> [round(bound, 3) for bound in wilson(0, 100)]
        [0.0, 0.037]
    """
    z = 1.959963984540054
    share, square = hits / count, z * z / count
    middle = share + square / 2
    half = z * ((share * (1 - share) + square / 4) / count) ** 0.5
    low, high = ((middle + sign * half) / (1 + square) for sign in (-1.0, 1.0))
    return max(0.0, low), min(1.0, high)
