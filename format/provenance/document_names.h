// Names and identifiers inside the two documents (format/SPEC.md, section 15). For the sources of this library only.
#pragma once

namespace moepack {

inline constexpr char kStatementType[] = "https://in-toto.io/Statement/v1";
inline constexpr char kPredicateType[] = "https://slsa.dev/provenance/v1";
// What SPEC.md describes; a URI of our own scheme, since the project owns no domain.
inline constexpr char kBuildType[] = "moepack:compress-and-pack/v1";
inline constexpr char kBuilderId[] = "moepack:command-line";

inline constexpr char kModelPrefix[] = "model/";
inline constexpr char kCalibrationPrefix[] = "calibration/";
inline constexpr char kProfileName[] = "profile";
inline constexpr char kLikeName[] = "like/plan.json";
inline constexpr char kBomName[] = "bom.cdx.json";
inline constexpr char kPlanName[] = "plan.json";
inline constexpr char kErrorsName[] = "errors.json";
inline constexpr char kModelRef[] = "bundle";

}  // namespace moepack
