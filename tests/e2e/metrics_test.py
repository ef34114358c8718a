"""Metrics and text while they come: JSON lines, Prometheus text, whole characters on standard output."""
import json
import os
import re
import subprocess

from harness import BIN, TRUST, WORK, Case, run

GENERATE = ("run", "generate", WORK / "wren-i4g64.moeb", "--trust", TRUST, "--prompt", "In the beginning")
NAME, LABEL = "[a-zA-Z_:][a-zA-Z0-9_:]*", r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ([-+]?(?:[0-9.]+(?:e[-+]?[0-9]+)?|Inf|NaN))")


def parse_prometheus(text):
    """Families of a text in Prometheus' exposition format: name to (type, {sample with labels: value}); ValueError for what
    the format does not allow. https://prometheus.io/docs/instrumenting/exposition_formats"""
    if not text.endswith("\n"):
        raise ValueError("the last line has no end")
    families, family = {}, None
    for line in text.splitlines():
        if comment := re.fullmatch(rf"# HELP ({NAME}) (.+)", line):
            family = comment[1]
            if family in families:
                raise ValueError(f"{family} twice")
            families[family] = [None, {}]
        elif comment := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|summary)", line):
            if comment[1] != family or families[family][0] is not None:
                raise ValueError(line)
            families[family][0] = comment[2]
        elif sample := SAMPLE.fullmatch(line):
            name, labels, value = sample.groups()
            kind, samples = families[family]
            allowed = {family, family + "_sum", family + "_count"} if kind == "summary" else {family}
            key = name + (f"{{{labels}}}" if labels else "")
            if kind is None or name not in allowed or key in samples:
                raise ValueError(line)
            samples[key] = float(value)
        else:
            raise ValueError(line)
    return families


class Metrics(Case):
    def test_every_output_says_the_same(self):
        lines, text = self.dir / "m.jsonl", self.dir / "m.prom"
        report = run(*GENERATE, "-n", 12, "--json", "--metrics-jsonl", lines, "--metrics-prometheus", text, "--metrics-every", 0).json()
        states = [json.loads(line) for line in lines.read_text().splitlines()]
        self.assertEqual(len(states), 12 + 1, "one after every token, and the last")
        self.assertEqual([state["last"] for state in states], [False] * 12 + [True])
        self.assertEqual([state["decoded_tokens"] for state in states[:-1]], list(range(12)))
        self.assertEqual(states[-1]["elapsed_ms"], max(state["elapsed_ms"] for state in states))
        last = {key: value for key, value in states[-1].items() if key not in ("last", "elapsed_ms")}
        self.assertEqual(last, {key: report[key] for key in last})
        families = parse_prometheus(text.read_text())
        self.assertEqual(families["moepack_decode_token_seconds"][1]["moepack_decode_token_seconds_count"], 11)
        self.assertEqual(families["moepack_decode_token_seconds"][0], "summary")
        for name, key in (("moepack_expert_hits_total", "expert_hits"), ("moepack_expert_loads_total", "expert_loads"),
                          ("moepack_expert_read_bytes_total", "expert_bytes_read"), ("moepack_expert_budget_bytes", "expert_budget_bytes"),
                          ("moepack_peak_resident_memory_bytes", "peak_rss_bytes"), ("moepack_prefilled_tokens_total", "prefilled_tokens")):
            self.assertEqual(families[name][1][name], report[key], name)
        self.assertAlmostEqual(families["moepack_time_to_first_token_seconds"][1]["moepack_time_to_first_token_seconds"],
                               report["ttft_ms"] / 1000)
        self.assertIn(f'cache_policy="{report["cache_policy"]}"', "".join(families["moepack_run_info"][1]))
        for name, (kind, samples) in families.items():
            self.assertEqual(kind == "counter", name.endswith("_total"), name)
            self.assertTrue(samples, name)

    def test_lines_are_appended_and_the_state_is_replaced(self):
        lines, text = self.dir / "m.jsonl", self.dir / "m.prom"
        for _ in range(2):
            run("run", "bench", WORK / "wren-i4g64.moeb", "--trust", TRUST, "-n", 2, "--prompt-tokens", 3, "--repeats", 2, "--metrics-jsonl",
                lines, "--metrics-prometheus", text)
        self.assertEqual([json.loads(line)["last"] for line in lines.read_text().splitlines()], [True, True])
        self.assertEqual(parse_prometheus(text.read_text())["moepack_verified"][1], {"moepack_verified": 1})
        self.assertEqual(sorted(path.name for path in self.dir.iterdir()), ["m.jsonl", "m.prom"])

    def test_lines_on_standard_output(self):
        outcome = run(*GENERATE, "-n", 4, "--metrics-jsonl", "-", "--quiet")
        lines = [json.loads(line) for line in outcome.out.splitlines()]
        self.assertTrue(lines and all(line["verified"] for line in lines), outcome.out)

    def test_energy_is_null_or_has_a_source(self):
        report = run(*GENERATE, "-n", 4, "--json").json()
        self.assertEqual(report["energy_joules"] is None, report["energy_source"] is None)
        self.assertIn(report["energy_source"], (None, "rapl", "battery_energy", "battery_power"))

    def test_options_that_cannot_be(self):
        self.assert_refused(*GENERATE, "--json", "--metrics-jsonl", "-", status=2, says="--metrics-jsonl -")
        self.assert_refused(*GENERATE, "--metrics-every", "-1", status=2, says="--metrics-every")
        self.assert_refused(*GENERATE, "--metrics-jsonl", self.dir / "none" / "m", status=7, says="cannot append")

    def test_the_parser_refuses_what_is_not_prometheus(self):
        for text in ("a 1\n", "# HELP a b\n# TYPE a gauge\na 1", "# HELP a b\n# TYPE a gauge\na{x=1} 1\n", "# HELP a b\na 1\n",
                     "# HELP a b\n# TYPE a gauge\nb 1\n", "# HELP a b\n# TYPE a gauge\na 1\na 1\n"):
            with self.assertRaises((ValueError, KeyError), msg=text):
                parse_prometheus(text)


class Streaming(Case):
    # Random bytes of a byte-level vocabulary: characters that are cut between tokens, and bytes that are none.
    OPTIONS = ("-n", 500, "--temperature", 1000, "--seed", 5)

    def packets(self, *args):
        """What the program wrote to standard output, write by write, from a pipe that keeps them apart."""
        reader, writer = os.pipe2(os.O_DIRECT)
        process = subprocess.Popen([str(BIN / "moepack"), *map(str, args)], stdout=writer, stderr=subprocess.DEVNULL)
        os.close(writer)
        packets = []
        while packet := os.read(reader, 65536):
            packets.append(packet)
        os.close(reader)
        self.assertEqual(process.wait(), 0)
        return packets

    @staticmethod
    def ends_inside_a_character(packet):
        for n in range(1, 4):
            lead = packet[-n] if n <= len(packet) else 0
            if lead & 0xC0 != 0x80:
                return (lead >= 0xC2) + (lead >= 0xE0) + (lead >= 0xF0) >= n and lead <= 0xF4
        return False

    def test_tokens_come_as_whole_characters(self):
        packets = self.packets(*GENERATE, *self.OPTIONS, "--quiet")
        report = run(*GENERATE, *self.OPTIONS, "--json").json()
        self.assertEqual(b"".join(packets).decode(errors="replace"), report["text"] + "\n")
        self.assertGreater(len(packets), len(report["tokens"]) // 2, "tokens come one by one")
        self.assertGreater(report["text"].count("\ufffd"), 0, "bytes that are no character were part of the test")
        for packet in packets[:-2]:  # the rest of the last character and the newline
            self.assertFalse(self.ends_inside_a_character(packet), packet)

    def test_the_check_sees_a_cut_character(self):
        for cut in (b"\xc3", b"a\xe2\x82", b"\xf0\x9f\x98"):
            self.assertTrue(self.ends_inside_a_character(cut), cut)
        for whole in (b"a", "ä€😀".encode(), b"\xff", b"\x80\x80\x80\x80"):
            self.assertFalse(self.ends_inside_a_character(whole), whole)

    def test_a_reader_that_leaves_ends_the_run(self):
        process = subprocess.Popen([str(BIN / "moepack"), *map(str, GENERATE), *map(str, self.OPTIONS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        error = process.stderr.read().decode()
        process.stderr.close()
        self.assertEqual(process.wait(), 7)
        self.assertIn("standard output", error)
