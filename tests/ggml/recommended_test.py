# SPDX-License-Identifier: MIT
"""`run` takes what was measured on a model with these numbers, and says so.

usage: as run_test.py"""

import json
import unittest
from pathlib import Path

from run_test import WithModel, run, write_model


class Recommended(WithModel):
    def test_what_was_measured_on_such_a_model_is_taken_and_said(self):
        sparse = ("--min-tokens", 64, "--min-keys", 0, "--min-rows", 2, "--coverage", 0.5)
        self.assertNotIn("measured_on", self.json_of(*sparse))
        file = sorted((Path(__file__).parents[2] / "settings").glob("*.json"))[0]
        measured = json.loads(file.read_text())
        numbers = [measured["model"][key] for key in ("num_heads", "num_kv_heads", "head_dim")]
        self.model = self.folder / "known.gguf"
        write_model(self.model, "llama", 4096, measured["model"]["num_layers"], "f32", "", *numbers)
        report = self.json_of(*sparse, "--layers", "1-2", "--setting", "recommended")
        self.assertEqual(report["measured_on"], measured["model"]["name"])
        self.assertEqual((report["layers"], report["sparse_layers"]), ("1-2", [1, 2]))
        self.assertEqual(self.json_of(*sparse, "--layers", "1-2")["measured_on"], measured["model"]["name"])
        self.assertNotIn("measured_on", self.json_of(*sparse, "--setting", "built-in"))
        shown = run(*self.arguments("-n", 2, *sparse, "--layers", "1-2")).stdout
        said = f"setting: the one measured on {measured['model']['name']}\n"
        self.assertIn(said.encode(), shown)


if __name__ == "__main__":
    unittest.main()
