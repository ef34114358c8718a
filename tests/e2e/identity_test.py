"""The runtime computes what the forward computes on the dequantized weights, however it is run."""
import json

from harness import CODECS, GOLDEN, TRUST, WORK, WREN, Case, floats, largest_difference, run

PROMPT = "The President said to the Congress that"


class Identity(Case):
    def tokens(self):
        return ",".join(map(str, json.loads((GOLDEN / "wren/speech.json").read_text())["tokens"]))

    def test_runtime_logits_equal_forward_on_dequantized_weights(self):
        for codec in CODECS:
            run("logits", WORK / f"dir-{codec}", "--tokens", self.tokens(), "-o", self.dir / "forward.f32")
            forward = floats(self.dir / "forward.f32")
            for threads in (1, 2):
                run("run", "logits", WORK / f"wren-{codec}.moeb", "--trust", TRUST, "--tokens", self.tokens(), "--threads", threads,
                    "-o", self.dir / "runtime.f32")
                self.assertLess(largest_difference(floats(self.dir / "runtime.f32"), forward), 1e-3, codec)

    def test_lossless_bundle_is_the_model(self):
        run("logits", WREN, "--tokens", self.tokens(), "-o", self.dir / "model.f32")
        run("logits", WORK / "dir-f32", "--tokens", self.tokens(), "-o", self.dir / "folder.f32")
        self.assertEqual(floats(self.dir / "model.f32"), floats(self.dir / "folder.f32"))

    def generate(self, codec, *options):
        outcome = run("run", "generate", WORK / f"wren-{codec}.moeb", "--trust", TRUST, "--prompt", PROMPT, "-n", 48, "--json", *options)
        return outcome.json()

    def test_same_tokens_for_threads_and_expert_cache(self):
        for codec in CODECS:
            full = self.generate(codec, "--threads", 2)
            resident = run("inspect", WORK / f"wren-{codec}.moeb", "--trust", TRUST, "--json").json()["expert_bytes_resident"]
            floor = self.minimum_cache(codec)
            for ram in (resident, resident // 2, floor):
                for threads in (1, 2):
                    other = self.generate(codec, "--threads", threads, "--expert-ram", ram)
                    self.assertEqual(other["tokens"], full["tokens"], (codec, ram, threads))
            self.assertGreater(other["expert_loads"], full["expert_loads"])
            self.assertLess(other["hit_rate"], 1)

    def test_same_tokens_for_every_cache_policy(self):
        full = self.generate("i4g64", "--threads", 2)
        recorded = run("inspect", WORK / "wren-i4g64.moeb", "--trust", TRUST, "--json").json()["cache_policy"]
        self.assertEqual(full["cache_policy"], recorded)
        self.assertNotEqual(recorded, "lru", "wren's traces like another")
        floor = self.minimum_cache("i4g64")
        for policy in ("lru", "lru pinned 30", "lfu half-life 0", "hobbit", "hobbit recency 100 frequency 0 nearness 0 half-life 0"):
            for ram in (floor, 4 * floor, f"{floor}..{4 * floor}", "auto"):
                for threads in (1, 2):
                    other = self.generate("i4g64", "--threads", threads, "--expert-ram", ram, "--cache-policy", policy)
                    self.assertEqual(other["tokens"], full["tokens"], (policy, ram, threads))
            self.assertEqual(other["cache_policy"].split()[0], policy.split()[0])

    def test_same_tokens_for_every_prefetch(self):
        full = self.generate("i4g64", "--threads", 2)
        self.assertEqual(full["prefetch_depth"], 0, "all experts fit")
        floor = self.minimum_cache("i4g64")
        for ram in (floor, 8 * floor):
            for threads in (1, 2, 3):
                for prefetch in (("--prefetch", 0), (), ("--prefetch", 2), ("--prefetch", 4, "--prefetch-lanes", 3)):
                    other = self.generate("i4g64", "--threads", threads, "--expert-ram", ram, *prefetch)
                    self.assertEqual(other["tokens"], full["tokens"], (ram, threads, prefetch))
                    # wren's experts are two chunks: of three threads one may wait.
                    self.assertEqual(other["prefetch_depth"] > 0, prefetch[1] > 0 if prefetch else threads == 3)

    def test_metrics_of_prefetching(self):
        floor = self.minimum_cache("i4g64")
        threads = ("--threads", 3)  # for the two chunks of an expert: one may wait
        off = self.generate("i4g64", *threads, "--expert-ram", 8 * floor, "--prefetch", 0)
        for key in ("experts_prefetched", "experts_prefetched_late", "experts_foreseen", "prefetches", "prefetches_wasted", "prefetch_bytes_read"):
            self.assertEqual(off[key], 0, key)
        on = self.generate("i4g64", *threads, "--expert-ram", 8 * floor, "--prefetch", 1)
        lookups = on["expert_hits"] + on["experts_prefetched"] + on["expert_misses"]
        self.assertEqual(lookups, off["expert_hits"] + off["expert_misses"], "the same tokens")
        self.assertGreater(on["experts_foreseen"], lookups // 4)
        self.assertGreater(on["prefetches"], 0)
        self.assertLessEqual(on["prefetches_wasted"], on["prefetches"])
        self.assertLessEqual(on["prefetch_bytes_read"], on["expert_bytes_read"])
        self.assertLessEqual(on["experts_prefetched_late"], on["expert_misses"])

    def test_metrics_of_the_expert_cache(self):
        floor = self.minimum_cache("i4g64")
        small = self.generate("i4g64", "--expert-ram", 2 * floor, "--cache-policy", "lru pinned 50")
        self.assertEqual(small["expert_budget_bytes"], 2 * floor)
        self.assertEqual(small["expert_budget_limit_bytes"], 2 * floor)
        lookups = small["expert_hits"] + small["experts_prefetched"] + small["expert_misses"]
        self.assertAlmostEqual(small["hit_rate"], small["expert_hits"] / lookups)
        self.assertGreaterEqual(small["expert_loads"], small["expert_misses"])
        self.assertGreater(small["expert_evictions"], 0)
        self.assertGreater(small["experts_pinned"], 0)
        grown = self.generate("i4g64", "--expert-ram", f"{floor}..{8 * floor}")
        self.assertGreater(grown["expert_budget_bytes"], floor)
        self.assertLessEqual(grown["expert_budget_bytes"], 8 * floor)
        kept = self.generate("i4g64", "--expert-ram", f"{floor}..{8 * floor}", "--grow-below", 0)
        self.assertEqual(kept["expert_budget_bytes"], floor)

    def test_options_of_the_expert_cache_that_cannot_be(self):
        generate = ("run", "generate", WORK / "wren-i4g64.moeb", "--trust", TRUST, "--prompt", PROMPT)
        for options, says in ((("--expert-ram", "8MiB..4MiB"), "above"), (("--expert-ram", "8MiB.."), "size"),
                              (("--cache-policy", "fifo"), "lru, lfu or hobbit"), (("--cache-policy", "hobbit recency 50"), "140"),
                              (("--grow-below", "1.5"), "0 to 1"), (("--prefetch", "5"), "0 to 4"), (("--prefetch-lanes", "65"), "64")):
            self.assert_refused(*generate, *options, status=2, says=says)

    def minimum_cache(self, codec):
        """The message that refuses a cache of one byte names the least it takes."""
        outcome = run("run", "generate", WORK / f"wren-{codec}.moeb", "--trust", TRUST, "--prompt", PROMPT, "--expert-ram", "1", expect=2)
        numbers = [int(word) for word in outcome.err.replace(",", " ").split() if word.isdigit()]
        return max(numbers)

    def test_greedy_tokens_follow_the_forward(self):
        """Each greedy token is the largest logit of the forward on the text so far."""
        result = self.generate("f32")
        ids = result["prompt_tokens"] + result["tokens"]
        run("logits", WREN, "--tokens", ",".join(map(str, ids)), "-o", self.dir / "l.f32")
        logits, vocab = floats(self.dir / "l.f32"), 4096
        for i in range(len(result["prompt_tokens"]) - 1, len(ids) - 1):
            row = logits[i * vocab:(i + 1) * vocab]
            self.assertEqual(row.index(max(row)), ids[i + 1], i)

    def test_sampling_repeats_with_its_seed(self):
        options = ("--temperature", "0.9", "--top-k", "40", "--top-p", "0.95")
        first = self.generate("i4g64", *options, "--seed", 11)["tokens"]
        self.assertEqual(first, self.generate("i4g64", *options, "--seed", 11)["tokens"])
        self.assertNotEqual(first, self.generate("i4g64", *options, "--seed", 12)["tokens"])
