# SPDX-License-Identifier: MIT
"""Loss against pairs computed, and against the time to the first token, as one SVG."""
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of what it draws on

matplotlib.rcParams["svg.hashsalt"] = "lab"  # the same figures give the same file


def draw(header, made, out):
    """made: lines of lab.table; dense is the zero line."""
    made = [line for line in made if line.loss is not None]
    lengths = sorted({line.length for line in made})
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    costs = [("query-key pairs, share of dense", "pairs"), ("time to first token, of dense", "seconds")]
    for panel, (label, field) in zip(panels, costs):
        for at, length in enumerate(lengths):
            mine = [line for line in made if line.length == length]
            x = [getattr(line, field) for line in mine]
            y = [line.loss.mean for line in mine]
            spread = [
                [line.loss.mean - line.loss.low for line in mine],
                [line.loss.high - line.loss.mean for line in mine],
            ]
            panel.errorbar(x, y, spread, fmt="o", color=f"C{at}", capsize=3, label=f"{length:,} tokens")
            for line, x_at in zip(mine, x):
                panel.annotate(line.setting, (x_at, line.loss.mean), fontsize=6, xytext=(4, 3),
                               textcoords="offset points")
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xlabel(label)
    panels[0].set_ylabel("change of the answer's loss, 95 % interval")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{header['model']}, {header['engine']}, {header['device']}, {header['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, format="svg", metadata={"Date": None})
