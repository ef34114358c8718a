"""Trust anchors and channel heads as users make them: moepack pack anchor, moepack pack head, --trust with an anchor."""
import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from harness import TRUST, WORK, Case, run

BUNDLE = WORK / "wren-i4g64.moeb"


def certificate(name, issuer=None, authority=False, code_signing=True, valid=(-1, 30)):
    """(certificate, key) of an RSA key of 2048 bits; issuer is another such pair. `valid`: days from now."""
    key = rsa.generate_private_key(65537, 2048)
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.utcnow()
    builder = (x509.CertificateBuilder().subject_name(named).issuer_name(issuer[0].subject if issuer else named).public_key(key.public_key())
               .serial_number(x509.random_serial_number()).not_valid_before(now + datetime.timedelta(days=valid[0]))
               .not_valid_after(now + datetime.timedelta(days=valid[1]))
               .add_extension(x509.BasicConstraints(authority, None), critical=True))
    if not authority:
        usage = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING if code_signing else x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def signed(data, pair, *chain, digest=hashes.SHA256, detached=True):
    builder = pkcs7.PKCS7SignatureBuilder().set_data(data).add_signer(*pair, digest())
    for other in chain:
        builder = builder.add_certificate(other[0])
    options = [pkcs7.PKCS7Options.Binary] + [pkcs7.PKCS7Options.DetachedSignature] * detached
    return builder.sign(serialization.Encoding.DER, options)


class Trust(Case):
    def keygen(self, *names):
        return [run("pack", "keygen", "-o", self.dir / f"{name}.pem", "--json").json()["public_key"] for name in names]

    def test_an_anchor_is_a_trust_file_and_is_rotated_by_old_and_new_roots(self):
        self.keygen("root1", "root2", "root3")
        roots = ["--root", self.dir / "root1.pem", "--root", self.dir / "root2.pem"]
        first, second = self.dir / "1.trust", self.dir / "2.trust"
        run("pack", "anchor", TRUST, *roots, "-o", first)
        run("verify", BUNDLE, "--trust", first)
        run("run", "generate", BUNDLE, "--trust", first, "--prompt", "A", "-n", "1")
        rotate = ["pack", "anchor", TRUST, "--root", self.dir / "root3.pem", "--previous", first, "-o", second]
        self.assert_refused(*rotate, "--previous-root", self.dir / "root1.pem", status=4, says="1 trusted keys, 2 required", output=second)
        both = ["--previous-root", self.dir / "root1.pem", "--previous-root", self.dir / "root2.pem"]
        self.assertEqual(run(*rotate, *both, "--json").json()["root_version"], 2)
        run("verify", BUNDLE, "--trust", second)
        damaged = bytearray(second.read_bytes())
        damaged[-1] ^= 1
        second.write_bytes(damaged)
        run("verify", BUNDLE, "--trust", second, expect=4)

    def test_a_certificate_vouches_for_an_anchor(self):
        self.keygen("root")
        anchor, cms, ca = self.dir / "a.trust", self.dir / "a.p7s", self.dir / "ca.pem"
        run("pack", "anchor", TRUST, "--root", self.dir / "root.pem", "-o", anchor)
        data = anchor.read_bytes()
        authority = certificate("Wren authority", authority=True)
        middle = certificate("Wren releases", authority, authority=True)
        signer = certificate("Wren anchors", middle)
        other = certificate("Another authority", authority=True)
        ca.write_bytes(b"".join(pair[0].public_bytes(serialization.Encoding.PEM) for pair in (other, authority)))
        check = ["pack", "certified", anchor, "--cms", cms, "--ca", ca]
        cms.write_bytes(signed(data, signer, middle))
        shown = run(*check, "--json").json()
        self.assertEqual((shown["certified"], shown["subject"], shown["issuer"], shown["root_version"]),
                         (True, "CN=Wren anchors", "CN=Wren releases", 1))
        self.assertIn("by CN=Wren anchors", run(*check).out)
        stranger = certificate("Stranger", certificate("Nobody", authority=True))
        for says, bytes_of in (("local issuer certificate", signed(data, signer)), ("local issuer certificate", signed(data, stranger)),
                               ("not for code signing", signed(data, certificate("Server", middle, code_signing=False), middle)),
                               ("certificate has expired", signed(data, certificate("Old", middle, valid=(-9, -1)), middle)),
                               ("not yet valid", signed(data, certificate("Young", middle, valid=(5, 9)), middle)),
                               ("SHA-224 or stronger", signed(data, signer, middle, digest=hashes.SHA1)),
                               ("content verify error", signed(data + b"x", signer, middle))):
            cms.write_bytes(bytes_of)
            self.assert_refused(*check, status=4, says=[says, "a.trust"])
        for says, bytes_of in (("must be detached", signed(data, signer, middle, detached=False)),
                               ("bytes follow", signed(data, signer, middle) + b"x"), ("expected a CMS structure", data)):
            cms.write_bytes(bytes_of)
            self.assert_refused(*check, status=3, says=says)
        cms.write_bytes(signed(data, signer, middle))
        ca.write_bytes(ca.read_bytes() + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        self.assert_refused(*check, status=3, says="PEM certificate 3")
        ca.write_text("nothing")
        self.assert_refused(*check, status=3, says="PEM certificate 1")
        anchor.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        self.assert_refused(*check, status=4, says="a.trust")

    def test_a_head_names_a_bundle(self):
        self.keygen("channel")
        head = ["pack", "head", BUNDLE, "--key", self.dir / "channel.pem", "--head-version", "1", "--expires", "1893456000", "-o",
                self.dir / "stable.head"]
        digest = run("verify", BUNDLE, "--trust", TRUST, "--json").json()["manifest_sha256"]
        self.assert_refused(*head, "--channel", "a/b", status=2, says="channel", output=self.dir / "stable.head")
        self.assertEqual(run(*head, "--channel", "stable", "--json").json()["manifest_sha256"], digest)
