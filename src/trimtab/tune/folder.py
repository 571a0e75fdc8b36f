"""A run's folder: where everything of one run lies, and how it is read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError
from trimtab.store.files import read_json, write_json, write_text
from trimtab.tune.config import Config, parse, read

OWN = "default"
"""What a run's adapter is called on its model; it may stand beside those that it combines."""


@dataclass(frozen=True)
class Run:
    """`config.yaml  adapter/  checkpoints/  metrics.json  log.jsonl  report.html`; `head` is what
    was trained alone, to compare."""

    path: Path

    config_file = property(lambda self: self.path / "config.yaml")
    adapter = property(lambda self: self.path / "adapter")
    checkpoints = property(lambda self: self.path / "checkpoints")
    metrics_file = property(lambda self: self.path / "metrics.json")
    log = property(lambda self: self.path / "log.jsonl")
    head = property(lambda self: self.path / "head.safetensors")
    report = property(lambda self: self.path / "report.html")

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: the report is written last."""
        return self.metrics_file.exists() and self.report.exists()

    def create(self, config: Config) -> None:
        """Begin a run here; a folder that holds one already is not written over."""
        left = (self.config_file, self.checkpoints, self.adapter, self.metrics_file)
        if any(path.exists() for path in left):
            raise InputError(
                f"{self.path} holds a run already: go on with --resume, or choose another --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file, not a folder")
        self.write_config(config)

    def abandon(self) -> None:
        """Take back a run that never began."""
        self.config_file.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def write_config(self, config: Config) -> None:
        write_text(self.config_file, config.dump())

    def config(self) -> Config:
        if not self.config_file.exists():
            raise InputError(f"{self.path} holds no run: there is no {self.config_file.name} in it")
        return parse(read(self.config_file), str(self.config_file))

    def finished(self) -> Config:
        """The configuration of a run that has come to its end."""
        config = self.config()
        if not self.adapter.is_dir() or config.labels is None:
            raise InputError(
                f"the run in {self.path} is not finished: go on with trimtab tune --resume "
                f"--out {self.path}"
            )
        return config

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_json(self.metrics_file, metrics)

    def metrics(self) -> dict[str, Any]:
        return read_json(self.metrics_file)
