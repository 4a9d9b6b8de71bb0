"""Draw the reward curve of a run from its TensorBoard log: `python docs/reward_curve.py RUNS_FOLDER PICTURE.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from wst.evaluation.curve import training_curve


def newest(folder: Path) -> Path:
    """Return the run with the highest version number, or the folder itself if it is a run."""
    runs = sorted(folder.glob("version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    return runs[-1] if runs else folder


def draw(run: Path, picture: Path) -> None:
    """Draw training and validation reward, and the arms of the comparison or test, if there is one."""
    curve = training_curve(run)
    figure, axes = plt.subplots(figsize=(7.2, 3.4), dpi=130)
    axes.plot(*zip(*curve["train"], strict=True), "o-", color="#3b6fb6", lw=1.4, ms=4, label="training batch")
    if curve.get("val"):
        axes.plot(*zip(*curve["val"], strict=True), "s", color="#d1662b", ms=8, label="validation, greedy")
    results = next((file for file in (run / "compare" / "results.json", run / "results.json") if file.is_file()), None)
    if results is not None:
        (student,) = json.loads(results.read_text(encoding="utf-8"))["students"].values()
        lines = {"no instruction": ("#888888", ":"), "untrained teacher": ("#888888", "--")}
        lines |= {student["best_fixed"]: ("#7a5aa6", "-."), "trained teacher": ("#2a8f5b", "-")}
        for arm, (color, style) in lines.items():
            if arm is not None:
                name = "best fixed sentence" if arm == student["best_fixed"] else arm
                axes.axhline(student["arms"][arm]["mean"], color=color, ls=style, lw=1.2, label=f"test, {name}")
    axes.set(xlabel="step", ylabel="reward", ylim=(-0.02, 1.05))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(newest(Path(sys.argv[1])), Path(sys.argv[2]))
