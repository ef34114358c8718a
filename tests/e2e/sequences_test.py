"""Several sequences and saved ones: what a user asks for by moepack run generate and bench."""
from harness import TRUST, WORK, Case, run

PROMPT = "The President said to the Congress that"


class Sequences(Case):
    def generate(self, *options, codec="i4g64", expect=0):
        return run("run", "generate", WORK / f"wren-{codec}.moeb", "--trust", TRUST, *options, expect=expect)

    def test_a_saved_sequence_goes_on_as_if_it_had_not_ended(self):
        for kv in (32, 8):
            whole = self.generate("--prompt", PROMPT, "-n", 40, "--kv", kv, "--json").json()
            state = self.dir / f"{kv}.seq"
            first = self.generate("--prompt", PROMPT, "-n", 15, "--kv", kv, "--save-state", state, "--threads", 1, "--json").json()
            rest = self.generate("--load-state", state, "-n", 25, "--kv", kv, "--expert-ram", "auto", "--tile", 7, "--json").json()
            self.assertEqual(first["tokens"] + rest["tokens"], whole["tokens"])
            self.assertEqual(first["restored_tokens"], 0)
            self.assertEqual(rest["restored_tokens"], len(first["prompt_tokens"]) + 14)

    def test_a_prompt_follows_a_saved_sequence(self):
        state, again = self.dir / "chat.seq", self.dir / "again.seq"
        first = self.generate("--prompt", PROMPT, "-n", 8, "--save-state", state, "--json").json()
        rest = self.generate("--load-state", state, "--prompt", " And then", "-n", 8, "--save-state", again, "--json").json()
        joined = self.generate("--prompt", PROMPT + first["text"] + " And then", "-n", 8, "--json").json()
        self.assertEqual(joined["prompt_tokens"], first["prompt_tokens"] + first["tokens"] + rest["prompt_tokens"][1:])
        self.assertEqual(rest["tokens"], joined["tokens"])
        self.generate("--load-state", again, "-n", 1)

    def test_what_is_not_a_sequence_of_this_bundle_is_refused(self):
        state, damaged, out = self.dir / "chat.seq", self.dir / "damaged.seq", self.dir / "out.seq"
        self.generate("--prompt", PROMPT, "-n", 8, "--save-state", state)
        data = bytearray(state.read_bytes())
        for length, flip, status, says in ((len(data), len(data) // 2, 4, "damaged"), (len(data) - 1, None, 4, "cut short"),
                                           (len(data), 0, 3, "not a saved sequence"), (0, None, 3, "not a saved sequence")):
            bad = data[:length]
            if flip is not None:
                bad[flip] ^= 1
            damaged.write_bytes(bad)
            outcome = self.generate("--load-state", damaged, "-n", 4, "--save-state", out, expect=status)
            self.assertIn(says, outcome.err)
            self.assertIn("damaged.seq", outcome.err)
            self.assertEqual(outcome.out, "")
        self.assertIn("its own bundle", self.generate("--load-state", state, codec="i8g64", expect=3).err)
        other_bits = self.generate("--load-state", state, "--kv", 8, expect=2).err
        self.assertIn("of 32 bits, not 8", other_bits)
        self.assertIn("--kv", other_bits)
        self.assertIn("--ctx", self.generate("--load-state", state, "--ctx", 9, expect=3).err)
        self.assertIn("--kv 16", self.generate("--prompt", PROMPT, "--kv", 16, expect=2).err)
        self.generate("--prompt", PROMPT, "-n", 4, "--save-state", self.dir / "no/such/folder", expect=7)
        self.assertFalse(out.exists())

    def test_bench_decodes_several_sequences(self):
        bundle = WORK / "wren-i4g64.moeb"
        report = run("run", "bench", bundle, "--trust", TRUST, "-p", 20, "-n", 5, "--repeats", 2, "--sequences", 3, "--json").json()
        self.assertEqual((report["sequences"], report["decoded_tokens"], report["prefilled_tokens"]), (3, 15, 60))
        self.assertGreater(report["decode_tokens_per_s"], 0)
        self.assertEqual(report["used_state_bytes"], report["state_bytes"])
        one = run("run", "bench", bundle, "--trust", TRUST, "-p", 20, "-n", 5, "--repeats", 1, "--kv", 8, "--json").json()
        self.assertEqual(one["sequences"], 1)
        self.assertLess(one["state_bytes"], report["state_bytes"] / 3 * 0.3)
        run("run", "bench", bundle, "--trust", TRUST, "--sequences", 0, expect=2)
        run("run", "bench", bundle, "--trust", TRUST, "--sequences", 9, "--tile", 8, expect=2)
