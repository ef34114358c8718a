"""Envelope, trust and manifest: R-0xx, R-1xx, R-3xx."""
import hashlib
import struct

import writer
from vectors import OPEN, USE, VERIFY, add, hook
from writer import KEY, SECOND_KEY, STRANGER, align

L = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19
RACE, FLIP, STRIP = "verify/use race", "unsigned fields", "signature stripping"
ALGORITHM, THRESHOLD, CONFUSION = "algorithm confusion", "threshold cheats", "key confusion"
OVERFLOW, LAYOUT, CUT, ROLLBACK = "integer overflow", "overlap, holes, polyglot", "truncation", "rollback, mix-and-match"
CRASH = "crash before the signature check"


def envelope(at, data):
    def edit(build):
        def change(out):
            out[at:at + len(data)] = data
        build.envelope = change
    return edit


whole_file = hook("file")


def cut_to(size):
    def change(data):
        del data[size:]
    return whole_file(change)


def signed_by(*keys):
    def edit(build):
        build.keys = list(keys)
    return edit


def trust(**fields):
    return lambda build: build.trust.update(fields)


def manifest(**fields):
    return lambda build: build.manifest.update(fields)


def message(**fields):
    def edit(build):
        build.message = lambda data: writer.signed_message(data, **fields)
    return edit


# ---- envelope ----

add("R-001", "magic_of_a_zip", whole_file(lambda data: data.__setitem__(slice(0, 4), b"PK\3\4")))
add("R-001", "magic_with_text_line_end", envelope(7, b"\r"))
add("R-001", "three_bytes_of_something_else", whole_file(lambda data: data.__setitem__(slice(0, None), b"ELF")),
    attack=CRASH)
for version in (0, 2, 2**32 - 1):
    add("R-002", f"format_version_{version}", envelope(8, struct.pack("<I", version)), attack=ALGORITHM)
for count in (17, 2**32 - 1):
    add("R-003", f"signature_count_{count}", envelope(12, struct.pack("<I", count)), attack=CRASH)
for size in (0, 2**20 + 1, 2**64 - 1, 2**64 - 1568):
    add("R-004", f"manifest_bytes_{size}", envelope(16, struct.pack("<Q", size)), attack=OVERFLOW)
for at in (24, 31):
    add("R-005", f"reserved_byte_{at}", envelope(at, b"\1"), attack=FLIP)


def same_key_twice(build):
    def change(out):
        out[12] = 2
        out[128:224] = out[32:128]
    build.envelope = change


def keys_swapped(build):
    def change(out):
        out[32:224] = out[128:224] + out[32:128]
    build.keys, build.envelope = [KEY, SECOND_KEY], change


add("R-006", "one_signature_twice", same_key_twice, attack=THRESHOLD)
add("R-006", "keys_in_falling_order", keys_swapped, attack=FLIP)
add("R-007", "data_behind_the_last_signature", envelope(128, b"\1"), attack=FLIP)
add("R-007", "last_byte_of_the_envelope", envelope(1567, b"\1"), attack=FLIP)
add("R-007", "signature_hidden_by_the_count", envelope(12, b"\0"), attack=STRIP)
for size in (0, 1, 8, 31, 32, 1567):
    add("R-008", f"cut_to_{size}_bytes", cut_to(size), attack=CUT)
add("R-008", "cut_inside_the_manifest", cut_to(1700), attack=CUT)
add("R-008", "manifest_reaches_past_the_end", envelope(16, struct.pack("<Q", 2**20)), attack=CUT)

# ---- signatures ----


def forged(public, signature):
    """One signature, made by hand: public and signature are bytes, or functions of the honest signature."""
    def edit(build):
        def change(out):
            honest = bytes(out[64:128])
            out[32:64] = public
            out[64:128] = signature(honest) if callable(signature) else signature
        build.envelope = change
    return edit


def little(number):
    return number.to_bytes(32, "little")


def secret_scalar(seed):
    digest = bytearray(hashlib.sha512(bytes([seed]) * 32).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 63 | 64
    return int.from_bytes(digest, "little")


def neutral_r(build):
    """R the neutral element and S = k a: the equation holds, and R has small order."""
    kept = {}

    def remember(data):
        kept["message"] = writer.signed_message(data)
        return kept["message"]

    def change(out):
        r = little(1)
        k = int.from_bytes(hashlib.sha512(r + KEY.public + kept["message"]).digest(), "little") % L
        out[64:128] = r + little(k * secret_scalar(1) % L)
    build.message, build.envelope = remember, change


def flip(at):
    return whole_file(lambda data: data.__setitem__(at, data[at] ^ 1))


ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
add("R-101", "s_plus_l", forged(KEY.public, lambda s: s[:32] + little(int.from_bytes(s[32:], "little") + L)),
    attack=ALGORITHM)
add("R-101", "s_is_l", forged(KEY.public, lambda s: s[:32] + little(L)), attack=ALGORITHM)
add("R-101", "s_has_its_top_bits_set", forged(KEY.public, lambda s: s[:63] + bytes([s[63] | 0xE0])), attack=ALGORITHM)
add("R-101", "r_of_small_order", neutral_r, attack=ALGORITHM)
for name, key in (("one", little(1)), ("zero", little(0)), ("minus_one", little(P - 1)), ("order_8", ORDER_8),
                  ("one_not_canonical", little(P + 1)), ("zero_not_canonical", little(P)),
                  ("one_negative", little(1 + 2**255))):
    add("R-101", f"key_of_small_order_{name}", forged(key, little(1) + little(0)), attack=ALGORITHM)
add("R-101", "key_not_on_the_curve", forged(little(2), little(1) + little(0)), attack=ALGORITHM)
add("R-101", "key_above_p", forged(little(2**255 - 1), little(1) + little(0)), attack=ALGORITHM)
add("R-101", "signature_of_zeros", forged(KEY.public, bytes(64)), attack=STRIP)
add("R-101", "flip_in_r", flip(64), attack=FLIP)
add("R-101", "flip_in_s", flip(100), attack=FLIP)
add("R-101", "flip_in_the_public_key", flip(33), attack=FLIP)
add("R-101", "flip_in_the_manifest", flip(1600), attack=FLIP)
add("R-101", "flip_in_the_last_byte_of_the_manifest",
    whole_file(lambda d: d.__setitem__(1567 + d[16] + 256 * d[17], d[1567 + d[16] + 256 * d[17]] ^ 1)), attack=FLIP)
add("R-101", "manifest_bytes_one_less", whole_file(lambda d: d.__setitem__(16, d[16] - 1)), attack=FLIP)
add("R-101", "signed_for_another_role", message(role=2), attack=CONFUSION)
add("R-101", "signed_for_role_zero", message(role=0), attack=CONFUSION)
add("R-101", "signed_for_another_format_version", message(version=2), attack=ALGORITHM)
add("R-101", "signed_with_another_length", message(length=1), attack=CONFUSION)
add("R-101", "signed_without_the_domain", message(domain=b""), attack=CONFUSION)
add("R-101", "signed_for_another_domain", message(domain=b"moepack signed channel.\n"), attack=CONFUSION)


def bare_manifest(build):
    build.message = lambda data: data


def signed_digest(build):
    build.message = lambda data: hashlib.sha256(writer.signed_message(data)).digest()


def stranger_broken(build):
    def change(out):
        out[32 + 96 * sorted([KEY.public, STRANGER.public]).index(STRANGER.public) + 40] ^= 1
    build.keys, build.envelope = [KEY, STRANGER], change


def signature_under_another_key(build):
    def change(out):
        out[32:64] = SECOND_KEY.public
    build.envelope = change


add("R-101", "signed_without_any_header", bare_manifest, attack=CONFUSION)
add("R-101", "signed_as_a_digest", signed_digest, attack=ALGORITHM)
add("R-101", "untrusted_signature_damaged", stranger_broken, attack=FLIP)
add("R-101", "signature_under_another_trusted_key", signature_under_another_key, attack=THRESHOLD)

# ---- trust ----

add("R-102", "nobody_signed", signed_by(), attack=STRIP)
add("R-102", "signed_by_a_stranger", signed_by(STRANGER), attack=STRIP)
add("R-102", "one_of_two_needed", trust(threshold=2), attack=THRESHOLD)
add("R-102", "second_signer_is_a_stranger", lambda b: (trust(threshold=2)(b), signed_by(KEY, STRANGER)(b)), attack=THRESHOLD)
add(None, "two_of_two_needed", lambda b: (trust(threshold=2)(b), signed_by(KEY, SECOND_KEY)(b)))
add(None, "a_stranger_signed_too", signed_by(KEY, STRANGER))
add("R-103", "another_product", manifest(product=b"camera"), attack=ROLLBACK)
add("R-103", "product_with_a_longer_name", manifest(product=b"vector2"), attack=ROLLBACK)
add("R-104", "key_epoch_below_the_floor", manifest(key_epoch=2, security_counter=99), attack=ROLLBACK)
add("R-105", "counter_below_the_floor", manifest(security_counter=6), attack=ROLLBACK)
add("R-105", "counter_left_out", manifest(security_counter=0), attack=ROLLBACK)
add(None, "counter_above_the_floor", manifest(security_counter=2**64 - 1))
add(None, "fast_forward_is_left_by_a_new_epoch", manifest(key_epoch=4, security_counter=1), attack="fast-forward")
add("R-104", "fast_forward_of_an_old_epoch", manifest(key_epoch=2, security_counter=2**64 - 1), attack="fast-forward")
add("R-106", "feature_nobody_has", manifest(required_features=[1]))
add("R-106", "feature_of_the_largest_number", manifest(required_features=[2**32 - 1]))


def signed_size(change):
    def edit(build):
        build.edit_manifest = lambda m: m.update(file_bytes=m["file_bytes"] + change)
    return edit


add("R-107", "a_byte_behind_the_end", whole_file(lambda data: data.extend(b"\0")), attack="endless download")
add("R-107", "four_kilobytes_behind_the_end", whole_file(lambda data: data.extend(bytes(4096))), attack="endless download")
add("R-107", "last_byte_is_missing", whole_file(lambda data: data.__delitem__(-1)), attack=CUT)
add("R-107", "cut_behind_the_manifest", cut_to(4096), attack=CUT)
add("R-107", "signed_size_one_more", signed_size(1), attack=CUT)
add("R-107", "signed_size_is_huge", signed_size(2**60), attack="endless download")


def flip_in_blob(index, at=0):
    def edit(build):
        places = []
        build.edit_manifest = lambda m: places.append(m["blobs"][index]["offset"] + at)
        build.file = lambda data: data.__setitem__(places[-1], data[places[-1]] ^ 4)
    return edit


def wrong_digest(index):
    def edit(build):
        def change(m):
            digest = m["blobs"][index]["digest"]
            m["blobs"][index]["digest"] = bytes([digest[0] ^ 1]) + digest[1:]
        build.edit_manifest = change
    return edit


def table_of_another_bundle(build):
    """The expert table of a bundle that the same key signed: the root binds all tables."""
    def change(m):
        build.other = m["blobs"][3]
    build.edit_manifest = change

    def swap(data):
        at = build.other["offset"]
        data[at:at + build.other["bytes"]] = bytes(build.other["bytes"])
    build.file = swap


for index, name in enumerate(("program", "tokenizer", "dense_table", "expert_table_0", "expert_table_1", "hot_list",
                              "provenance")):
    add("R-108", f"flip_in_{name}", flip_in_blob(index), attack=FLIP)
add("R-108", "signed_digest_of_a_blob_is_wrong", wrong_digest(2), attack=FLIP)
add("R-108", "expert_table_of_another_bundle", table_of_another_bundle, attack=ROLLBACK)


def flip_in_chunk(number):
    def edit(build):
        def change(data):
            chunk = [c for unit in build.units() for c in unit["chunks"]][number]
            data[chunk["offset"] + chunk["stored_bytes"] // 2] ^= 16
        build.file = change
    return edit


def chunks_swapped(build):
    def change(data):
        one, two = [unit["chunks"][0] for unit in build.model["experts"][0]["units"]][2:4]
        a, b = (slice(c["offset"], c["offset"] + 64) for c in (one, two))
        data[a], data[b] = data[b], data[a]
    build.file = change


for number, name in ((0, "a_zstd_chunk"), (2, "a_raw_chunk"), (-1, "the_last_chunk")):
    add("R-109", f"flip_in_{name}", flip_in_chunk(number), stage=VERIFY, attack=RACE)
add("R-109", "two_chunks_trade_places", chunks_swapped, stage=VERIFY, attack=ROLLBACK)


def padding(find):
    def edit(build):
        build.file = lambda data: data.__setitem__(find(build), 1)
    return edit


add("R-110", "padding_behind_the_manifest", padding(lambda b: 4095), stage=VERIFY, attack=LAYOUT)
add("R-110", "padding_behind_a_blob", padding(lambda b: 2 * 4096 - 1), stage=VERIFY, attack=LAYOUT)
add("R-110", "padding_behind_a_chunk",
    padding(lambda b: align(b.model["dense"]["units"][0]["chunks"][0]["offset"] + 1) - 1), stage=VERIFY, attack=LAYOUT)

# ---- manifest ----

add("R-301", "product_empty", manifest(product=b""))
add("R-301", "product_in_upper_case", manifest(product=b"Vector"))
add("R-301", "product_with_a_path", manifest(product=b"../vector"), attack="path traversal")
add("R-301", "version_empty", manifest(version=b""))
add("R-301", "version_with_a_newline", manifest(version=b"1.0\n"))
add("R-302", "feature_twice", manifest(required_features=[5, 5]), attack="duplicate names")
add("R-302", "features_falling", manifest(required_features=[5, 4]))
for step in (0, 6, 256, 2**32 - 1):
    add("R-303", f"unavailability_step_{step}", manifest(unavailable=[step]))
add("R-303", "unavailability_step_twice", manifest(unavailable=[2, 2]), attack="duplicate names")
add("R-303", "unavailability_steps_falling", manifest(unavailable=[4, 1]))
add(None, "every_step_of_unavailability", manifest(unavailable=[1, 2, 3, 4, 5]))
add("R-304", "no_chunks", manifest(chunk_count=0))


def blobs(change):
    """`change` edits the list of blob entries of the finished manifest."""
    def edit(build):
        build.edit_manifest = lambda m: change(m["blobs"])
    return edit


def blob_list(change):
    """`change` edits [kind, index, bytes] before they get their places."""
    def edit(build):
        build.edit_blobs = change
    return edit


add("R-305", "blob_of_kind_zero", blobs(lambda b: b[0].update(kind=0)))
add("R-305", "kinds_falling", blob_list(lambda b: b.insert(0, b.pop(5))), attack=LAYOUT)
add("R-305", "program_with_index_1", blobs(lambda b: b[0].update(index=1)))
add("R-305", "second_hot_list", blob_list(lambda b: b.insert(6, list(b[5]))), attack="duplicate names")
add("R-305", "second_program", blob_list(lambda b: b.insert(1, list(b[0]))), attack="duplicate names")
add("R-305", "expert_table_twice", blobs(lambda b: b[4].update(index=0)), attack="duplicate names")
add("R-305", "expert_table_missing_in_between", blobs(lambda b: b[4].update(index=2)))
add("R-306", "no_blobs", blobs(lambda b: b.clear()))
for index, name in ((0, "program"), (2, "dense_table"), (5, "hot_list")):
    add("R-306", f"no_{name}", blob_list(lambda b, index=index: b.pop(index)))
add("R-307", "blob_of_no_bytes", blob_list(lambda b: b[6].__setitem__(2, b"")))
add("R-307", "blob_too_long", blobs(lambda b: b[0].update(bytes=2**26 + 1)), attack=OVERFLOW)
add("R-307", "blob_as_long_as_numbers_go", blobs(lambda b: b[0].update(bytes=2**64 - 1)), attack=OVERFLOW)
add("R-308", "blob_not_aligned", blobs(lambda b: b[1].update(offset=b[1]["offset"] + 1)), attack=LAYOUT)
add("R-308", "first_blob_at_zero", blobs(lambda b: b[0].update(offset=0)), attack=LAYOUT)
add("R-308", "hole_between_blobs", blobs(lambda b: b[1].update(offset=b[1]["offset"] + 4096)), attack=LAYOUT)
add("R-308", "blobs_overlap", blobs(lambda b: b[2].update(offset=b[1]["offset"])), attack=LAYOUT)
add("R-308", "last_blob_past_the_end", blobs(lambda b: b[6].update(bytes=2**26)), attack=OVERFLOW)
add("R-308", "blob_offset_overflows", blobs(lambda b: b[0].update(offset=2**64 - 4096, bytes=8192)), attack=OVERFLOW)


def all_blobs_later(build):
    def change(m):
        for blob in m["blobs"]:
            blob["offset"] += 4096
    build.edit_manifest = change


add("R-308", "hole_behind_the_manifest", all_blobs_later, attack=LAYOUT)
add(None, "valid", lambda build: None)
