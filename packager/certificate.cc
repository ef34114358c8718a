#include "packager/certificate.h"

#include <openssl/bio.h>
#include <openssl/cms.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>

namespace moepack {
namespace {

constexpr int kAuthLevel = 2;  // OpenSSL's security level of 112 bits: no SHA-1, no RSA below 2048 bits
constexpr int kLeastDigestBits = 224;

template <auto free>
struct Free {
  template <typename T>
  void operator()(T* p) const {
    free(p);
  }
};
using BioPointer = std::unique_ptr<BIO, Free<&BIO_free_all>>;
using StorePointer = std::unique_ptr<X509_STORE, Free<&X509_STORE_free>>;
using ParamPointer = std::unique_ptr<X509_VERIFY_PARAM, Free<&X509_VERIFY_PARAM_free>>;
using CertificatePointer = std::unique_ptr<X509, Free<&X509_free>>;
using CmsPointer = std::unique_ptr<CMS_ContentInfo, Free<&CMS_ContentInfo_free>>;
struct FreeSigners {
  void operator()(STACK_OF(X509) * signers) const { sk_X509_free(signers); }  // the certificates are the structure's
};
using SignersPointer = std::unique_ptr<STACK_OF(X509), FreeSigners>;

BioPointer Reader(ByteSpan bytes) { return BioPointer(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size()))); }

std::string TextOf(BIO* bio) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio, &text);
  return size > 0 ? std::string(text, static_cast<size_t>(size)) : std::string();
}

std::string NameText(const X509_NAME* name) {
  const BioPointer out(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(out.get(), name, 0, XN_FLAG_RFC2253);
  return TextOf(out.get());
}

// The last thing that went wrong in OpenSSL, with its detail ("certificate verify error: certificate has expired").
std::string Reason() {
  const char *data = nullptr, *text = nullptr;
  int flags = 0;
  const unsigned long code = ERR_peek_last_error_all(nullptr, nullptr, nullptr, &data, &flags);
  text = ERR_reason_error_string(code);
  std::string reason = text != nullptr ? text : "no reason given";
  if ((flags & ERR_TXT_STRING) != 0 && data != nullptr && *data != 0) reason += std::string(": ") + data;
  ERR_clear_error();
  return reason;
}

Result<StorePointer> Authorities(ByteSpan pem) {
  StorePointer store(X509_STORE_new());
  const BioPointer in = Reader(pem);
  int count = 0;
  for (;; ++count) {
    const CertificatePointer certificate(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
    if (!certificate) break;
    if (X509_STORE_add_cert(store.get(), certificate.get()) != 1) {
      return Status(ErrorCode::kBadInput, "authorities: certificate " + std::to_string(count + 1) + ": " + Reason());
    }
  }
  const unsigned long end = ERR_peek_last_error();
  const bool clean = ERR_GET_LIB(end) == ERR_LIB_PEM && ERR_GET_REASON(end) == PEM_R_NO_START_LINE;
  if (count == 0 || !clean) {
    return Status(ErrorCode::kBadInput, StrFormat("authorities: PEM certificate %d: %s", count + 1, Reason().c_str()));
  }
  ERR_clear_error();
  const ParamPointer param(X509_VERIFY_PARAM_new());
  // The usage that is asked for is looked at below: OpenSSL 3.0 has no purpose for it.
  if (X509_VERIFY_PARAM_set_purpose(param.get(), X509_PURPOSE_ANY) != 1 ||
      X509_STORE_set1_param(store.get(), param.get()) != 1) {
    return Status(ErrorCode::kInternal, "OpenSSL could not set what certificates are checked for");
  }
  X509_VERIFY_PARAM_set_auth_level(X509_STORE_get0_param(store.get()), kAuthLevel);
  return store;
}

// SignedData, detached, one signer, a digest that nobody can collide, and nothing behind it.
Result<CmsPointer> ParseCms(ByteSpan der) {
  const uint8_t* at = der.data();
  CmsPointer cms(d2i_CMS_ContentInfo(nullptr, &at, static_cast<long>(der.size())));
  if (!cms) return Status(ErrorCode::kBadInput, "signature: expected a CMS structure in DER: " + Reason());
  if (at != der.data() + der.size()) return Status(ErrorCode::kBadInput, "signature: bytes follow the CMS structure");
  STACK_OF(CMS_SignerInfo)* signers = CMS_get0_SignerInfos(cms.get());
  if (signers == nullptr || sk_CMS_SignerInfo_num(signers) != 1) {
    ERR_clear_error();
    return Status(ErrorCode::kBadInput, "signature: expected SignedData of one signer");
  }
  if (CMS_is_detached(cms.get()) != 1) {
    return Status(ErrorCode::kBadInput, "signature: must be detached: it holds a content of its own");
  }
  X509_ALGOR* digest = nullptr;
  CMS_SignerInfo_get0_algs(sk_CMS_SignerInfo_value(signers, 0), nullptr, nullptr, &digest, nullptr);
  const EVP_MD* md = EVP_get_digestbyobj(digest->algorithm);
  if (md == nullptr || EVP_MD_get_size(md) * 8 < kLeastDigestBits) {
    return Status(ErrorCode::kUntrusted, "signature: its digest must be SHA-224 or stronger");
  }
  return cms;
}

}  // namespace

Result<Certifier> CheckCertified(ByteSpan record, ByteSpan signature, ByteSpan authorities) {
  ERR_clear_error();
  MOEPACK_ASSIGN_OR_RETURN(const StorePointer store, Authorities(authorities));
  MOEPACK_ASSIGN_OR_RETURN(const CmsPointer cms, ParseCms(signature));
  const BioPointer content = Reader(record);
  if (CMS_verify(cms.get(), nullptr, store.get(), content.get(), nullptr, CMS_BINARY) != 1) {
    return Status(ErrorCode::kUntrusted, "signature: " + Reason());
  }
  const SignersPointer signers(CMS_get0_signers(cms.get()));
  if (!signers || sk_X509_num(signers.get()) != 1) return Status(ErrorCode::kUntrusted, "signature: no signer");
  X509* signer = sk_X509_value(signers.get(), 0);
  Certifier certifier{NameText(X509_get_subject_name(signer)), NameText(X509_get_issuer_name(signer)), ""};
  const bool limited = (X509_get_extension_flags(signer) & EXFLAG_XKUSAGE) != 0;
  if (!limited || (X509_get_extended_key_usage(signer) & XKU_CODE_SIGN) == 0) {
    return Status(ErrorCode::kUntrusted,
                  "signature: the certificate of " + certifier.subject + " is not for code signing (extended key usage)");
  }
  const BioPointer until(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(until.get(), X509_get0_notAfter(signer));
  certifier.not_after = TextOf(until.get());
  return certifier;
}

}  // namespace moepack
