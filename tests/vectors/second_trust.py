"""Trust records (SPEC.md, section 13). Part of the second reader."""
import re

from second_program import must
from second_wire import U32, U64, digest, many, name, number, parse

ROLE = {1: number("role", U32, 3), 2: number("threshold", U32), 3: many("keys", {1: digest("public_key")}, 16)}
ANCHOR = {1: number("version", U32), 2: name("product", 64), 3: number("root_version", U64), 4: number("key_epoch", U64),
          5: number("minimum_security_counter", U64), 6: many("roles", ROLE, 3)}
HEAD = {1: number("version", U32), 2: name("product", 64), 3: name("channel", 64), 4: number("head_version", U64),
        5: number("expires", U64), 6: number("key_epoch", U64), 7: number("security_counter", U64),
        8: digest("manifest_digest"),
        9: number("file_bytes", U64), 10: number("rollout_permille", U32, 1000)}
RELEASE, ROOT, CHANNEL = 1, 2, 3
NAME = re.compile(rb"[a-z0-9._-]{1,64}")


def role_of(anchor, role):
    return next((r for r in anchor["roles"] if r["role"] == role), None)


def must_be_signed(keys, anchor, role, rule):
    trusted = role_of(anchor, role)
    must(trusted is not None, rule, "no keys of the role")
    signers = {key["public_key"] for key in trusted["keys"]} & set(keys)
    must(len(signers) >= trusted["threshold"], rule, "signatures")


def parse_anchor(body):
    anchor = parse(body, ANCHOR)
    must(NAME.fullmatch(anchor["product"]) and anchor["root_version"] >= 1, "R-903", "product or root_version")
    roles, seen = [r["role"] for r in anchor["roles"]], set()
    must(0 not in roles and all(a < b for a, b in zip(roles, roles[1:])), "R-903", "order of roles")
    for role in anchor["roles"]:
        keys = [key["public_key"] for key in role["keys"]]
        must(1 <= role["threshold"] <= len(keys), "R-903", "threshold")
        must(all(a < b for a, b in zip(keys, keys[1:])) and not seen & set(keys), "R-903", "keys")
        seen |= set(keys)
    must({RELEASE, ROOT} <= set(roles), "R-903", "a role is missing")
    return anchor


def read_anchor(keys, body):
    anchor = parse_anchor(body)
    must_be_signed(keys, anchor, ROOT, "R-904")
    return anchor


def read_successor(current, keys, body):
    must_be_signed(keys, current, ROOT, "R-905")
    after = read_anchor(keys, body)
    must(after["product"] == current["product"], "R-906", "product")
    must(after["root_version"] == current["root_version"] + 1, "R-907", "root_version")
    floor = lambda anchor: (anchor["key_epoch"], anchor["minimum_security_counter"])
    must(floor(after) >= floor(current), "R-907", "floors")
    return after


def read_head(anchor, view, keys, body):
    """view: channel, now, head_version, key_epoch, security_counter (what the device has seen)."""
    must_be_signed(keys, anchor, CHANNEL, "R-911")
    head = parse(body, HEAD)
    must(NAME.fullmatch(head["product"]) and NAME.fullmatch(head["channel"]) and head["head_version"], "R-903",
         "names, version")
    must(head["product"] == anchor["product"] and head["channel"] == view["channel"].encode(), "R-912", "product or channel")
    must(head["head_version"] >= view["head_version"], "R-913", "head_version")
    must(head["expires"] >= view["now"], "R-914", "expired")
    floor = max((anchor["key_epoch"], anchor["minimum_security_counter"]), (view["key_epoch"], view["security_counter"]))
    must((head["key_epoch"], head["security_counter"]) >= floor, "R-915", "floors")
    return head
