# SPDX-License-Identifier: MIT
"""`run` and `eval` with block patterns, on a tiny model; environment as of run_test.py."""

import json
import unittest

from run_test import TEXT, WithModel, run

BLOCKS = ("--blocks", "pooled,block=16,threshold=0.2")
SHORT = ("--min-keys", 0, "--min-rows", 2)


class Blocks(WithModel):
    def sparse(self, *options):
        more = ("-n", 2, "--json", *options, *SHORT, "--ubatch", 700, "--verbose")
        result = run(*self.arguments(*more))
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)["sparse"]

    def test_alone_and_on_the_kept_tokens(self):
        alone = self.sparse("--coverage", 0, *BLOCKS)
        self.assertEqual((alone["kept"], alone["kept_of_all"]), (1, 1))
        half = ("--keep", 0.5, "--min-tokens", 64)
        tokens, both = self.sparse(*half), self.sparse(*half, *BLOCKS)
        self.assertEqual(both["kept"], tokens["kept"])
        self.assertLess(alone["pairs"], 1)
        self.assertLess(both["pairs"], tokens["pairs"])
        self.assertEqual([layer["pairs"] for layer in both["layers"]][::5], [1, 1])
        self.assertTrue(all(layer["pairs"] < 0.9 for layer in both["layers"][1:5]))

    def test_in_a_setting_file_with_the_names_of_openvino(self):
        file = self.folder / "blocks.json"
        setting = {"format": "tokensparse setting 1", "coverage": 0, "min_keys": 0, "min_rows": 2}
        setting["blocks"] = {"pattern": "xattention", "xattention_threshold": 0.3}
        setting["blocks"] |= {"xattention_block_size": 32, "xattention_stride": 8}
        file.write_text(json.dumps(setting))
        report = self.json_of("--setting", file, "--ubatch", 700)
        self.assertLess(report["sparse"]["pairs"], 1)
        report = self.json_of("--setting", file, "--ubatch", 700, "--blocks", "none")
        self.assertEqual(report["exact"]["pairs"], 1)

    def test_too_few_blocks_to_gain_are_not_estimated(self):
        report = self.json_of("--coverage", 0, *BLOCKS, "--ubatch", 700)
        self.assertEqual(report["why_exact"], "fewer than 4096 tokens (--min-keys)")
        self.assertEqual(report["sparse"]["pairs"], 1)

    def test_lists_wider_than_those_of_tokens_are_refused(self):
        arguments = self.arguments("--blocks", "pooled,share=layer")
        self.fails("blocks.share must be no wider than share .kv_group., got layer", 1, *arguments)

    def test_eval_takes_them_for_every_setting_but_exact(self):
        file = self.folder / "half.json"
        setting = {"format": "tokensparse setting 1", "name": "half", "keep": 0.5, "min_keys": 0}
        file.write_text(json.dumps({**setting, "min_rows": 64, "min_tokens": 64}))
        question = json.dumps({"id": 1, "prompt": TEXT}) + "\n"
        arguments = ("eval", "-m", self.model, "-n", 1, "-s", "exact", "-s", file)
        lines = []
        for more in ((), BLOCKS):
            result = run(*arguments, *more, input=question.encode())
            self.assertEqual((result.returncode, result.stderr), (0, b""))
            lines += [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([line["setting"] for line in lines], ["exact", "half"] * 2)
        self.assertEqual(lines[2]["pairs"], 1)
        self.assertEqual(lines[3]["kept"], lines[1]["kept"])
        self.assertLess(lines[3]["pairs"], lines[1]["pairs"])


if __name__ == "__main__":
    unittest.main()
