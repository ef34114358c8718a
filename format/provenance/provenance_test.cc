#include "format/provenance/provenance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/digest/sha256.h"
#include "format/manifest/unavailable.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string Hex(char digit) { return std::string(64, digit); }

class ProvenanceTest : public ::testing::Test {
 protected:
  ProvenanceTest() {
    record_.tool_version = "0.1.0";
    record_.family = "qwen2_moe";
    record_.recipe = R"({"defaults":{"candidates":["i4g64"]},"gptq":true,"target_bpw":4.5,"version":1})";
    record_.accepted_keys = "mystery,rope_scaling.twist";
    record_.inputs = {{"config.json", Hex('1')}, {"model.safetensors", Hex('2')}};
    record_.profile = Hex('3');
    record_.calibration = {{"german", Hex('4')}, {"novel", Hex('5')}};
    record_.like = Hex('6');
    record_.plan = Hex('7');
    pack_ = {"wren", "1.2", 1, 7, 9, "0.1.1", std::nullopt};
    for (const char* name : {"program", "tokenizer", "dense-table", "expert-table/0", "hot-list"})
      result_.subjects.push_back({name, Hex('8')});
    result_.original_parameters = 16274688;
    result_.parameters = 16000000;
    result_.codecs = {"f32", "i4g64"};
    result_.errors = Hex('9');
    result_.kld = 0.0011334;
    result_.domain_kld = {{"german", 0.002}, {"novel", 0.0005}};
  }

  Json Statement() const { return Document(&ProvenanceDocuments::statement); }
  Json Bom() const { return Document(&ProvenanceDocuments::bom); }

  BuildRecord record_;
  PackParameters pack_;
  BuildResult result_;

 private:
  Json Document(std::string_view ProvenanceDocuments::*which) const {
    const std::string blob = MakeProvenance(record_, pack_, result_);
    return Json::parse(SplitProvenance(AsBytes(blob)).value().*which);
  }
};

TEST_F(ProvenanceTest, RecordIsReadBack) {
  const std::string text = SerializeBuildRecord(record_);
  EXPECT_EQ(ParseBuildRecord(AsBytes(text)).value(), record_);
  record_.profile.clear();
  record_.like.clear();
  record_.calibration.clear();
  EXPECT_EQ(ParseBuildRecord(AsBytes(SerializeBuildRecord(record_))).value(), record_);
}

TEST_F(ProvenanceTest, AcceptedKeysAreStatedWhenThereAreAny) {
  const auto stated = [this] { return Statement()["predicate"]["buildDefinition"]["externalParameters"]["compress"]; };
  EXPECT_EQ(stated()["accepted_keys"], "mystery,rope_scaling.twist");
  EXPECT_EQ(KeysOf(record_.accepted_keys), (std::vector<std::string>{"mystery", "rope_scaling.twist"}));
  EXPECT_EQ(KeyList(KeysOf(record_.accepted_keys)), record_.accepted_keys);
  EXPECT_EQ(KeysOf(KeyList({})), std::vector<std::string>());
  EXPECT_EQ(ParseProvenance(AsBytes(MakeProvenance(record_, pack_, result_)))->record.accepted_keys, record_.accepted_keys);
  record_.accepted_keys.clear();
  EXPECT_FALSE(stated().contains("accepted_keys"));
  EXPECT_EQ(SerializeBuildRecord(record_).find("accepted_keys"), std::string::npos);
}

TEST_F(ProvenanceTest, RecordNamesWhatIsWrong) {
  const Json good = Json::parse(SerializeBuildRecord(record_));
  for (const char* key : {"version", "tool_version", "family", "recipe", "inputs", "calibration", "plan"}) {
    Json bad = good;
    bad.erase(key);
    const Status status = ParseBuildRecord(AsBytes(bad.dump())).status();
    EXPECT_EQ(status.code(), ErrorCode::kBadInput) << key;
    EXPECT_THAT(status.message(), HasSubstr(std::string("'") + key + "'"));
  }
  Json bad = good;
  bad["profile"] = std::string(64, 'X');
  EXPECT_THAT(ParseBuildRecord(AsBytes(bad.dump())).status().message(), HasSubstr("'profile'"));
  bad = good;
  bad["version"] = 1;
  EXPECT_THAT(ParseBuildRecord(AsBytes(bad.dump())).status().message(), HasSubstr("compress again"));
  EXPECT_EQ(ParseBuildRecord(AsBytes("[]")).status().code(), ErrorCode::kBadInput);
}

TEST_F(ProvenanceTest, BlobSaysAllThatARebuildNeeds) {
  for (const std::optional<uint64_t> date : {std::optional<uint64_t>(), std::optional<uint64_t>(1700000000)}) {
    pack_.source_date_epoch = date;
    pack_.unavailable =
        date ? std::vector<Unavailable>{Unavailable::kRetry, Unavailable::kTwin} : std::vector<Unavailable>();
    const std::string blob = MakeProvenance(record_, pack_, result_);
    const Result<RecordedBuild> build = ParseProvenance(AsBytes(blob));
    ASSERT_TRUE(build.ok()) << build.status().message();
    EXPECT_EQ(build->record, record_);
    EXPECT_EQ(build->pack, pack_);
    EXPECT_EQ(build->subjects, result_.subjects);
    EXPECT_EQ(blob.find("2023-11-14T22:13:20Z") != std::string::npos, date.has_value());
  }
}

TEST_F(ProvenanceTest, BillOfMaterialsTellsModelAndTexts) {
  const Json bom = Bom(), model = bom["metadata"]["component"];
  EXPECT_EQ(model["type"], "machine-learning-model");
  EXPECT_EQ(model["name"], "wren");
  EXPECT_EQ(model["modelCard"]["modelParameters"]["datasets"][1]["ref"], "calibration/novel");
  const Json metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"];
  EXPECT_EQ(metrics[0]["value"], "1.133e-03");
  EXPECT_EQ(metrics[1]["slice"], "calibration/german");
  EXPECT_EQ(bom["components"].size(), 6u);
  EXPECT_FALSE(bom["metadata"].contains("timestamp"));
  result_.kld.reset();
  result_.domain_kld.clear();
  EXPECT_FALSE(Bom()["metadata"]["component"]["modelCard"].contains("quantitativeAnalysis"));
}

TEST_F(ProvenanceTest, StatementNamesTheBillOfMaterialsByDigest) {
  const std::string blob = MakeProvenance(record_, pack_, result_);
  const ProvenanceDocuments documents = SplitProvenance(AsBytes(blob)).value();
  EXPECT_EQ(Statement()["predicate"]["runDetails"]["byproducts"][0]["digest"]["sha256"],
            ToHex(Sha256(AsBytes(documents.bom))));
  std::string other = blob;
  other[other.find("16000000")] = '2';
  EXPECT_THAT(ParseProvenance(AsBytes(other)).status().message(), HasSubstr("bill of materials"));
}

TEST_F(ProvenanceTest, LengthIsKnownBeforehand) {
  const size_t length = MakeProvenance(record_, pack_, result_).size();
  BuildResult planned = result_;
  for (NamedDigest& subject : planned.subjects) subject.sha256.clear();
  planned.errors.clear();
  for (const double kld : {0.0, 1e-300, 1e-12, 0.1, 99.0}) {
    result_.kld = kld;
    EXPECT_EQ(MakeProvenance(record_, pack_, result_).size(), length) << kld;
    EXPECT_LE(length, MostProvenanceBytes(record_, planned));
  }
  pack_ = {std::string(64, 'p'), std::string(64, 'v'), UINT64_MAX, UINT64_MAX, 22, "0.1.0",
           kMaxSourceDate,       AllUnavailable()};
  EXPECT_EQ(MakeProvenance(record_, pack_, result_).size(), MostProvenanceBytes(record_, planned));
}

TEST_F(ProvenanceTest, WhatIsNotOursIsRefused) {
  const std::string blob = MakeProvenance(record_, pack_, result_);
  for (const std::string& bad : {std::string(), std::string("{}"), std::string("{}\n"), blob + "{}\n", blob + "x",
                                 std::string("{}\n{}\n"), std::string("[]\n[]\n"), std::string("\n\n")}) {
    EXPECT_EQ(ParseProvenance(AsBytes(bad)).status().code(), ErrorCode::kBadInput) << bad;
  }
  for (const char* text : {"moepack:compress-and-pack/v1", "https://slsa.dev/provenance/v1", "model/config.json",
                           "zstd_level", "buildDefinition", "recipe", "moepack-pack"}) {
    std::string bad = blob;
    bad[bad.find(text) + 1] = '_';
    const Status status = ParseProvenance(AsBytes(bad)).status();
    EXPECT_EQ(status.code(), ErrorCode::kBadInput) << text;
  }
}

// The names of files and domains are somebody's text.
TEST_F(ProvenanceTest, NamesNeedNotBeUtf8) {
  record_.calibration = {{"\xff\"\n", Hex('4')}};
  const std::string blob = MakeProvenance(record_, pack_, result_);
  EXPECT_TRUE(ParseProvenance(AsBytes(blob)).ok());
}

}  // namespace
}  // namespace moepack
