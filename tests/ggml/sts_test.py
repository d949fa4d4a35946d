# SPDX-License-Identifier: MIT
"""`run --method sts`: a draft's votes as a model's sets, on tiny random models.

usage: TOKENSPARSE=the/program WRITE_TINY_MODEL=its/writer python3 sts_test.py"""

import json
import unittest

from run_test import WithModel, run, write_model

NUMBERS = {"num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
SPARSE = ("--keep", 0.5, "--min-tokens", 64, "--min-keys", 0, "--min-rows", 2, "--pool", 3)


class Sts(WithModel):
    def head_map(self, heads=None, name="map.json", **changes):
        """Each KV head by its own query heads, as a model that is its own draft has it."""
        own = [[[[layer, 2 * kv], [layer, 2 * kv + 1]] for kv in (0, 1)] for layer in range(6)]
        made = {"format": "tokensparse head map 1", "target": NUMBERS, "draft": NUMBERS}
        path = self.folder / name
        path.write_text(json.dumps({**made, "heads": own if heads is None else heads, **changes}))
        return path

    def json(self, *more):
        """Of an answer long enough to be nobody else's."""
        result = run(*self.arguments("-n", 12, "--json", *more))
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        return json.loads(result.stdout)

    def sts(self, *more, draft=None, head_map=None):
        head_map = self.head_map() if head_map is None else head_map
        return (*SPARSE, "--method", "sts", "--draft", draft or self.model, "--head-map", head_map, *more)

    def test_a_model_that_is_its_own_draft_chooses_what_it_would_itself(self):
        # One sparse layer: behind it the model's q and k are no longer the exact draft's.
        options = ("--layers", 1, "--ubatch", 4096)
        own = self.json(*SPARSE, *options)
        found = self.json(*self.sts(*options))
        self.assertEqual((own["method"], found["method"]), ("tsa", "sts"))
        self.assertEqual(found["draft"], "model.gguf")
        for key in ("answer", "kept", "pairs"):
            self.assertEqual(own["sparse"][key], found["sparse"][key], key)
        self.assertLess(found["sparse"]["pairs"], 0.95)
        self.assertTrue(0 < found["sparse"]["draft_s"] < found["sparse"]["ttft_s"])
        self.assertNotIn("draft_s", own["sparse"])
        # Other heads choose other tokens.
        other = self.head_map([[[[5, 0]], [[4, 3]]] for _ in range(6)])
        changed = self.json(*self.sts(*options, head_map=other))
        self.assertEqual(changed["sparse"]["kept"], own["sparse"]["kept"])
        self.assertNotEqual(changed["sparse"]["pairs"], own["sparse"]["pairs"])

    def test_by_coverage_and_in_chunks(self):
        for ubatch, sparse in ((4096, [1, 2, 3, 4]), (700, [1, 2, 3, 4])):
            options = ("--keep", 0, "--coverage", 0.3, "--ubatch", ubatch)
            arguments = [*SPARSE[2:], *self.sts()[len(SPARSE) :], *options]
            report = self.json(*arguments)
            self.assertEqual(report["sparse_layers"], sparse)
            self.assertTrue(0.05 < report["sparse"]["kept"] < 1, report["sparse"]["kept"])

    def test_nothing_dropped_is_exact(self):
        exact = self.json("--coverage", 0)
        arguments = [*SPARSE[2:], *self.sts()[len(SPARSE) :], "--keep", 1]
        found = self.json(*arguments)
        self.assertEqual(found["sparse"]["answer"], exact["exact"]["answer"])
        self.assertEqual((found["sparse"]["pairs"], found["sparse_layers"]), (1, []))

    def test_a_smaller_draft_and_what_a_person_reads(self):
        draft = self.folder / "draft.gguf"
        write_model(draft, "llama", 4096, 3)
        made_for = {**NUMBERS, "num_layers": 3}
        head_map = self.head_map([[[[2, 1]], [[1, 0], [2, 3]]] for _ in range(6)], draft=made_for)
        result = run(*self.arguments("-n", 2, *self.sts("--compare", draft=draft, head_map=head_map)))
        self.assertEqual(result.returncode, 0, result.stderr)
        line = r"sparse: draft.gguf chose the tokens and took \d+\.\d\d s of the time to the first token"
        self.assertRegex(result.stdout.decode(), line)
        self.fails("the draft must be the one it was made for: it is for a model with num_layers 3, "
                   "this model has 6", 1, *self.arguments(*self.sts(head_map=head_map)))

    def test_nobody_asks_the_draft_where_nothing_may_be_left_out(self):
        arguments = [*self.sts()[len(SPARSE) :], "--coverage", 0.1]
        report = self.json(*arguments)
        self.assertRegex(report["why_exact"], "fewer than 4096 tokens")
        self.assertNotIn("draft_s", report["sparse"])

    def test_drafts_that_do_not_fit(self):
        renamed = self.folder / "renamed.gguf"
        renamed.write_bytes(self.tiny.read_bytes().replace(b"<|im_end|>", b"<|im_END|>"))
        self.fails(r"--draft: must have the tokenizer of the model, \S+renamed.gguf has another token \d+",
                   1, *self.arguments(*self.sts(draft=renamed)))
        short = self.folder / "short.gguf"
        write_model(short, "llama", 512, 6)
        self.fails(r"--draft: must take a prompt of \d+ tokens, \S+ was trained for 512", 1,
                   *self.arguments(*self.sts(draft=short)))
        self.fails("missing.gguf: No such file", 1,
                   *self.arguments(*self.sts(draft=self.folder / "missing.gguf")))

    def test_maps_that_do_not_fit(self):
        def refused(rule, head_map):
            self.fails(f"head map .*{rule}", 1, *self.arguments(*self.sts(head_map=head_map)))

        refused("cannot be read", self.folder / "missing.json")
        refused("must be a JSON object", self.text)
        refused('format must be "tokensparse head map 1"', self.head_map(format="x"))
        heads = {**NUMBERS, "num_heads": 8}
        refused("the draft must be .* num_heads 8, this model has 4", self.head_map(draft=heads))
        refused("the model must be .* num_heads 8, this model has 4", self.head_map(target=heads))
        refused("draft.head_dim must be a positive integer", self.head_map(draft={**NUMBERS, "head_dim": 0}))
        refused("heads must be given for 6 layers of 2 KV heads", self.head_map([[[[0, 0]]] * 2] * 5))
        refused("heads must be given for 6 layers of 2 KV heads", self.head_map([[[[0, 0]]]] * 6))
        for bad in ([], [[0]], [0, 0], [[0, "x"]], [[0, -1]]):
            refused("heads must name one or more", self.head_map([[bad] * 2] * 6))
        refused(r"of the draft's 6 layers of 4 heads .*, one is \[6, 0\]", self.head_map([[[[6, 0]]] * 2] * 6))

    def test_command_lines(self):
        usage = ("--method", "sts", "--draft", self.model)
        self.fails("--method sts: needs --draft and --head-map", 2, *self.arguments(*usage))
        self.fails("--draft and --head-map: must go with --method sts", 2, *self.arguments(*usage[2:]))
        self.fails("--method: must be one of tsa, sts, got lazyllm", 2,
                   *self.arguments("--method", "lazyllm"))
        self.fails("--share: must be kv_group with --method sts", 2,
                   *self.arguments(*self.sts("--share", "head")))


if __name__ == "__main__":
    unittest.main()
