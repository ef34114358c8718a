"""Trust records: R-9xx, and rules of the envelope and the wire form that hold for them too."""
from vectors import RECORD, add
from writer import RECORD_KEYS, Key, delimited

ROOTS, NEW_ROOT = RECORD_KEYS["root"], RECORD_KEYS["new_root"]
RELEASE_KEY = RECORD_KEYS["release"]
CONFUSION, THRESHOLD, ROLLBACK, FLIP = "key confusion", "threshold cheats", "rollback, mix-and-match", "unsigned fields"
TWICE, CUT, FREEZE = "duplicate names", "truncation", "endless download"


def record(kind, rule, name, *edits, attack=None):
    def edit(build):
        build.kind = kind
        for step in edits:
            step(build)
    add(rule, f"{kind}_{name}", edit, stage=RECORD, attack=attack)


def field(**values):
    """Fields of the record under test."""
    return lambda build: build.record().update(values)


def role(index, **values):
    return lambda build: build.record()["roles"][index].update(values)


def roles(change):
    return lambda build: change(build.record()["roles"])


def signed_by(*keys):
    return lambda build: setattr(build, "keys", list(keys))


def view(**values):
    return lambda build: build.view.update(values)


def file(change):
    return lambda build: setattr(build, "file", change)


def body(change):
    return lambda build: setattr(build, "body", change)


def as_role(number):
    return lambda build: setattr(build, "role", number)


for kind in ("anchor", "next", "head"):
    record(kind, None, "valid")
    record(kind, "R-901", "with_the_magic_of_a_bundle", file(lambda d: d.__setitem__(slice(0, 8), b"MOEBNDL\n")),
           attack=CONFUSION)
    record(kind, "R-002", "of_format_version_2", file(lambda d: d.__setitem__(8, 2)))
    record(kind, "R-007", "with_data_in_the_last_slot", file(lambda d: d.__setitem__(1567, 1)), attack=FLIP)
    record(kind, "R-008", "cut_in_its_envelope", file(lambda d: d.__delitem__(slice(1000, None))), attack=CUT)
    record(kind, "R-008", "cut_in_its_body", file(lambda d: d.__delitem__(-1)), attack=CUT)
    record(kind, "R-902", "with_a_byte_behind_it", file(lambda d: d.append(0)), attack="overlap, holes, polyglot")
    record(kind, "R-101", "flip_in_its_body", file(lambda d: d.__setitem__(-1, d[-1] ^ 1)), attack=FLIP)
    record(kind, "R-101", "signed_as_a_release", as_role(1), attack=CONFUSION)
    record(kind, "R-201", "of_wire_version_2", body(lambda data: b"\x08\2" + data[2:]))
    record(kind, "R-202", "with_an_unknown_field", body(lambda data: data + b"\x78\1"), attack="protobuf malleability")
    record(kind, "R-903", "of_a_product_in_upper_case", field(product=b"Vector"))
record("anchor", "R-901", "empty", file(lambda d: d.clear()))
record("anchor", "R-901", "that_is_a_head", file(lambda d: d.__setitem__(slice(0, 8), b"MOEHEAD\n")), attack=CONFUSION)
record("head", "R-901", "that_is_an_anchor", file(lambda d: d.__setitem__(slice(0, 8), b"MOETRST\n")), attack=CONFUSION)
record("anchor", "R-101", "signed_as_a_head", as_role(3), attack=CONFUSION)
record("head", "R-101", "signed_as_a_root", as_role(2), attack=CONFUSION)

# ---- anchor ----

record("anchor", "R-903", "of_root_version_0", field(root_version=0))
record("anchor", "R-903", "without_release_keys", roles(lambda r: r.pop(0)))
record("anchor", "R-903", "without_root_keys", roles(lambda r: r.pop(1)), attack="signature stripping")
record("anchor", "R-903", "with_role_0", role(0, role=0))
record("anchor", "R-903", "with_a_role_twice", role(2, role=2), attack=TWICE)
record("anchor", "R-903", "with_falling_roles", roles(lambda r: r.reverse()), attack=TWICE)
record("anchor", "R-903", "with_threshold_0", role(1, threshold=0), attack=THRESHOLD)
record("anchor", "R-903", "with_a_threshold_above_its_keys", role(1, threshold=3), attack=THRESHOLD)
record("anchor", "R-903", "with_a_role_of_no_keys", role(2, keys=[], threshold=0), attack=THRESHOLD)
record("anchor", "R-903", "with_a_key_twice_in_a_role", role(0, keys=[{"public_key": RELEASE_KEY.public}] * 2, threshold=2),
       attack=THRESHOLD)
record("anchor", "R-903", "with_falling_keys", roles(lambda r: r[1]["keys"].reverse()), attack=TWICE)
record("anchor", "R-903", "with_a_key_of_two_roles", role(2, keys=[{"public_key": RELEASE_KEY.public}]), attack=CONFUSION)
record("anchor", "R-205", "with_role_4", role(2, role=4), attack="type or shape lies")
record("anchor", "R-208", "with_a_key_of_31_bytes", role(2, keys=[{"public_key": b"k" * 31}]), attack="type or shape lies")
record("anchor", "R-209", "with_17_keys", role(2, keys=sorted(({"public_key": Key(100 + i).public} for i in range(17)),
                                                             key=lambda key: key["public_key"])), attack="integer overflow")
record("anchor", "R-209", "with_4_roles", body(lambda data: data + delimited(6, b"\x08\3\x10\1")), attack="integer overflow")
record("anchor", "R-904", "signed_by_nobody", signed_by(), attack="signature stripping")
record("anchor", "R-904", "signed_by_one_root_of_two", signed_by(ROOTS[0]), attack=THRESHOLD)
record("anchor", "R-904", "signed_by_a_root_and_a_release_key", signed_by(ROOTS[0], RELEASE_KEY), attack=CONFUSION)

# ---- rotation ----

record("next", "R-905", "signed_by_its_own_keys_only", signed_by(NEW_ROOT), attack=THRESHOLD)
record("next", "R-905", "signed_by_one_old_root_of_two", signed_by(ROOTS[0], NEW_ROOT), attack=THRESHOLD)
record("next", "R-904", "signed_by_the_old_keys_only", signed_by(*ROOTS), attack=THRESHOLD)
record("next", "R-906", "for_another_product", field(product=b"camera"), attack=ROLLBACK)
for version in (1, 3, 2**64 - 1):
    record("next", "R-907", f"of_root_version_{version}", field(root_version=version), attack=ROLLBACK)
record("next", "R-907", "of_a_lower_epoch", field(key_epoch=2, minimum_security_counter=99), attack=ROLLBACK)
record("next", "R-907", "of_a_lower_counter", field(minimum_security_counter=6), attack=ROLLBACK)
record("next", None, "of_a_new_epoch", field(key_epoch=4, minimum_security_counter=0), attack="fast-forward")

# ---- channel head ----

record("head", "R-911", "signed_by_nobody", signed_by(), attack="signature stripping")
record("head", "R-911", "signed_by_a_release_key", signed_by(RELEASE_KEY), attack=CONFUSION)
record("head", "R-911", "of_a_device_without_channel_keys", lambda b: b.current["roles"].pop(), attack=CONFUSION)
record("head", "R-903", "of_version_0", field(head_version=0))
record("head", "R-903", "of_a_channel_with_a_slash", field(channel=b"a/b"), attack="path traversal")
record("head", "R-205", "for_1001_permille", field(rollout_permille=1001), attack="type or shape lies")
record("head", "R-208", "without_a_digest", field(manifest_digest=b""), attack="type or shape lies")
record("head", "R-912", "for_another_product", field(product=b"camera"), attack=ROLLBACK)
record("head", "R-912", "for_another_channel", field(channel=b"beta"), attack=ROLLBACK)
record("head", "R-913", "older_than_the_last", view(head_version=6), attack=ROLLBACK)
record("head", "R-914", "expired_a_second_ago", view(now=1700000001), attack=FREEZE)
record("head", "R-915", "below_the_floor_of_the_anchor", field(security_counter=6), attack=ROLLBACK)
record("head", "R-915", "below_what_was_confirmed", view(key_epoch=3, security_counter=8), attack=ROLLBACK)
record("head", "R-915", "of_an_old_epoch", view(key_epoch=4, security_counter=0), attack="fast-forward")
