# SPDX-License-Identifier: MIT
"""`run` with linear layers in 8 bits and their memory; environment as of run_test.py."""

import unittest

from run_test import WithModel, run


class Linear(WithModel):
    def setUp(self):
        super().setUp()
        self.use_weights("q8_0")
        asked = self.arguments("-n", 2, "--json", "--coverage", 0, "--linear", "int8")
        if b"VNNI" in run(*asked).stderr:
            self.skipTest("no 8-bit products on this processor")

    def exact(self, *more):
        return self.json_of("--coverage", 0, "--linear", "int8", *more)["exact"]

    def test_weights_stay_as_memory_allows_and_are_made_anew_unless(self):
        kept, anew = self.exact(), self.exact("--linear-keep", 0)
        self.assertEqual(kept["answer"], anew["answer"])
        self.assertEqual(kept["linear"]["served"], anew["linear"]["served"])
        self.assertGreater(anew["linear"]["dequantise_s"], 0)
        self.assertEqual(kept["linear"]["dequantise_s"], 0)  # made before the prompt is read
        # 6 layers: q, k, v, o and the feed-forward's three, in panels of 32 rows and groups of 128.
        self.assertGreater(kept["linear"]["bytes"], anew["linear"]["bytes"] + 6 * 500 * 128)

    def test_refuses_less_than_nothing(self):
        self.fails("--linear-keep", 2, *self.arguments("--linear-keep", -1))


if __name__ == "__main__":
    unittest.main()
