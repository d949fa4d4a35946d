# SPDX-License-Identifier: MIT
"""`run` with linear layers of its own and their memory; environment as of run_test.py."""

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


class LinearInBf16(WithModel):
    def setUp(self):
        super().setUp()
        self.use_weights("q8_0")
        if b"AVX512-BF16" in run(*self.arguments("--linear", "bf16")).stderr:
            self.skipTest("no products of bf16 on this processor")

    def test_is_chosen_by_name_and_leaves_no_weights_behind(self):
        report = self.json_of("--coverage", 0, "--linear", "bf16")
        self.assertRegex(report["linear"], r"^bf16 \(A(VX512|MX)-BF16\)$")
        self.assertEqual(report["precision"], "bf16")
        served = report["exact"]["linear"]
        self.assertGreater(served["dequantise_s"], 0)  # made anew
        kept = self.json_of("--coverage", 0, "--linear", "bf16", "--linear-keep", 1)["exact"]["linear"]
        self.assertEqual(kept["served"], served["served"])
        self.assertGreater(kept["bytes"], served["bytes"])

    def test_takes_weights_that_are_not_quantised(self):
        self.use_weights("f16")
        report = self.json_of("--coverage", 0, "--linear", "bf16")
        self.assertGreater(report["exact"]["linear"]["served"], 0)


if __name__ == "__main__":
    unittest.main()
